"""Fixtures of the GPU kernels' tests."""

from __future__ import annotations

import pytest

from tests.plugins.cuda.on_cpu import LIBRARY, MISSING, HostDevice, LibraryOnCpu


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory):
    """Where compiled kernels are looked for."""
    if not LIBRARY.exists():
        pytest.skip(MISSING)
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(params=(80, 90), ids=("sm80", "sm90"))
def library(request, kernel_folder):
    """The GPU library as each kind of GPU whose kernels are run has it."""
    return LibraryOnCpu(request.param, kernel_folder)


@pytest.fixture
def device():
    return HostDevice()
