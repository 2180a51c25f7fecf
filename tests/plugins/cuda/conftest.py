"""Fixtures of the GPU kernels' tests."""

from __future__ import annotations

import pytest

from tests.plugins.cuda.host_functions import LIBRARY, HostFunctions


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory):
    """Where compiled kernels are looked for."""
    if not LIBRARY.exists():
        pytest.skip(f"{LIBRARY} is not built: no nvcc or triton, or scripts/test.sh did not run")
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(params=(80, 90), ids=("sm80", "sm90"))
def functions(request, kernel_folder):
    """The host functions on each kind of GPU whose kernels are run."""
    host = HostFunctions(request.param, kernel_folder)
    host.need("kernels")
    return host
