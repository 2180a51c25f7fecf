"""The GPU of this machine, asked of its driver."""

from __future__ import annotations

import ctypes

# The compute capability of the first GPUs that this package has kernels for.
LEAST_CAPABILITY = (8, 0)
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def compute_capability() -> str | None:
    """That of the first GPU, such as ``8.9``; None where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for number, attribute in ((major, _MAJOR), (minor, _MINOR)):
        if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device):
            return None
    return f"{major.value}.{minor.value}"
