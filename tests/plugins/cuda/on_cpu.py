"""The GPU library on the CPU: its kernels are PTX, translated to C++ (tests/ptx).

What a call does is what it does on a GPU, from its workspace to its last kernel; only the launch is
another one (launch_on_cpu.cpp), and device memory is the host's.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from moe_export.gpu.c_api import GpuLibrary
from tests.ptx.build import build

BUILD = Path(os.environ.get("MOE_EXPORT_CUDA_BUILD", Path(__file__).parents[3] / "build" / "tests"))
LIBRARY = BUILD / "tests" / "cuda" / "libmoe_export_cuda_on_cpu.so"
PTX = BUILD / "cuda" / "kernels" / "ptx"
MISSING = f"{LIBRARY} is not built: no nvcc or triton, or scripts/test.sh did not run"


class HostDevice:
    """Host memory as a `moe_export.runners.device.Device`, not a byte more than asked for."""

    name = "this machine's CPU"
    stream = None

    def __init__(self):
        self._arrays = {}

    def allocate(self, size_bytes):
        memory = np.full(size_bytes + 256, 0xFF, np.uint8)
        address = memory.ctypes.data + -memory.ctypes.data % 256
        self._arrays[address] = memory
        return address

    def upload(self, array):
        data = np.ascontiguousarray(array)
        address = self.allocate(data.nbytes)
        self._view(address, data.nbytes)[:] = data.reshape(-1).view(np.uint8)
        return address

    def download(self, address, like):
        copy = np.empty_like(like, order="C")
        copy.reshape(-1).view(np.uint8)[:] = self._view(address, copy.nbytes)
        return copy

    def _view(self, address, size_bytes):
        memory = self._arrays[address]
        begin = address - memory.ctypes.data
        return memory[begin : begin + size_bytes]

    def release(self):
        self._arrays.clear()

    def time_us(self, call, repeats):
        call()
        return [1.0] * repeats

    def copy_rate(self):
        return 1e12


class LibraryOnCpu(GpuLibrary):
    """The GPU library; kernels are compiled when something needs them.

    Args:
        capability: Compute capability of the GPU that there seems to be.
        folder: Where compiled kernels go, under the names that the launch looks for.
    """

    def __init__(self, capability: int, folder: Path) -> None:
        super().__init__(LIBRARY)
        self.capability = capability
        self.folder = folder
        self.use()
        self.need("kernels")

    def use(self):
        """The kernels of this capability from now on: there is one library per process."""
        os.environ["MOE_EXPORT_PTX_KERNELS"] = str(self.folder)
        os.environ["MOE_EXPORT_TEST_CAPABILITY"] = str(self.capability)

    def need(self, *names: str) -> None:
        """Compile kernels, ``matmul_bf16_bf16_m16`` or ``kernels`` say."""
        for name in names:
            file = name if name == "kernels" else f"{name}_sm{self.capability}"
            link = self.folder / f"{file}.so"
            if not link.exists():
                link.symlink_to(build((PTX / f"{file}.ptx").read_text(), name=f"{file}.ptx"))

    def need_form(self, element, weights, tile):
        """Compile the products of a form."""
        stored = f"{weights.weight_type}{'b32' if weights.block_size == 32 else ''}"
        self.need(*(f"{kind}_{element}_{stored}_m{tile}" for kind in ("gated_matmul", "matmul")))
