"""The GPU library on the CPU: its kernels are PTX, translated to C++ (tests/ptx).

What a call does is what it does on a GPU, from its workspace to its last kernel; only the launch is
another one (launch_on_cpu.cpp), and device memory is the host's.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np

from moe_export.gpu.c_api import GpuLibrary
from tests.ptx.build import build

BUILD = Path(os.environ.get("MOE_EXPORT_CUDA_BUILD", Path(__file__).parents[3] / "build" / "tests"))
LIBRARY = BUILD / "tests" / "cuda" / "libmoe_export_cuda_on_cpu.so"
PTX = BUILD / "cuda" / "kernels" / "ptx"
SANITIZE = os.environ.get("MOE_EXPORT_TEST_SANITIZE", "")
# A fault that AddressSanitizer has to find: workspaces of half the size.
HALF_WORKSPACE = os.environ.get("MOE_EXPORT_TEST_HALF_WORKSPACE") == "1"
MISSING = f"{LIBRARY} is not built: no nvcc or triton, or scripts/test.sh did not run"


class HostDevice:
    """Host memory as a `moe_export.runners.device.Device`.

    Not a byte more than asked for: AddressSanitizer sees what a kernel reads or writes beyond.
    """

    name = "this machine's CPU"
    stream = None

    def __init__(self):
        self._memory = {}
        self._c = ctypes.CDLL(None)  # a sanitizer's functions, if there is one

    def allocate(self, size_bytes):
        address = ctypes.c_void_p()
        size = max(size_bytes, 1)
        if self._c.posix_memalign(
            ctypes.byref(address), ctypes.c_size_t(256), ctypes.c_size_t(size)
        ):
            raise MemoryError(f"{size} bytes")
        array = (ctypes.c_uint8 * size).from_address(address.value)
        self._memory[address.value] = np.frombuffer(array, np.uint8)[:size_bytes]
        self._memory[address.value][:] = 0xFF
        return address.value

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
        return self._memory[address][:size_bytes]

    def release(self):
        for address in self._memory:
            self._c.free(ctypes.c_void_p(address))
        self._memory.clear()

    def __del__(self):
        self.release()

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

    def number(self, name, *arguments):
        found = super().number(name, *arguments)
        return found // 2 if HALF_WORKSPACE and name.endswith("workspace") else found

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
                text = (PTX / f"{file}.ptx").read_text()
                link.symlink_to(build(text, sanitize=SANITIZE, name=f"{file}.ptx"))

    def need_form(self, element, weights, tile):
        """Compile the products of a form."""
        stored = f"{weights.weight_type}{'b32' if weights.block_size == 32 else ''}"
        self.need(*(f"{kind}_{element}_{stored}_m{tile}" for kind in ("gated_matmul", "matmul")))
