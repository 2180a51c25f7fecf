"""Fixtures of the GPU kernels' tests."""

from __future__ import annotations

import pytest

from tests.plugins.cuda.on_cpu import LIBRARY, MISSING, PTX, HostDevice, LibraryOnCpu

# Kinds of GPU whose kernels run for every commit, and those whose do where they were built.
OFTEN = (80, 90)
SELDOM = (100, 103, 120, 121)


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory):
    """Where compiled kernels are looked for."""
    if not LIBRARY.exists():
        pytest.skip(MISSING)
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(
    params=[*OFTEN, *(pytest.param(target, marks=pytest.mark.slow) for target in SELDOM)],
    ids=lambda target: f"sm{target}",
)
def library(request, kernel_folder):
    """The GPU library as each kind of GPU has it."""
    if not (PTX / f"matmul_fp32_fp32_m16_sm{request.param}.ptx").exists():
        pytest.skip(f"there are no kernels for SM{request.param}: see MOE_EXPORT_CUDA_TARGETS")
    return LibraryOnCpu(request.param, kernel_folder)


@pytest.fixture
def device():
    return HostDevice()
