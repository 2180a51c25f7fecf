"""The host functions of plugins/cuda over kernels that run on the CPU: PTX, translated (tests/ptx).

What a call does is what it does on a GPU, from its workspace to its last kernel; only the launch is
another one (launch_on_cpu.cpp).
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import fields
from pathlib import Path

import ml_dtypes
import numpy as np

from moe_export.ops.record import OpAttributes
from tests.ptx.build import build

BUILD = Path(os.environ.get("MOE_EXPORT_CUDA_BUILD", Path(__file__).parents[3] / "build" / "tests"))
LIBRARY = BUILD / "tests" / "cuda" / "libmoe_export_cuda_on_cpu.so"
PTX = BUILD / "cuda" / "kernels" / "ptx"

ELEMENTS = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
CAPABILITIES = (80, 90)


class HostFunctions:
    """The library, with the kernels of one capability.

    Args:
        capability: Compute capability of the GPU that there seems to be.
        folder: Where compiled kernels go, under the names that the launch looks for.
    """

    def __init__(self, capability: int, folder: Path) -> None:
        self.library = ctypes.CDLL(str(LIBRARY))
        self.capability = capability
        self.folder = folder
        os.environ["MOE_EXPORT_PTX_KERNELS"] = str(folder)
        os.environ["MOE_EXPORT_TEST_CAPABILITY"] = str(capability)

    def need(self, *names: str) -> None:
        """Compile kernels, ``matmul_bf16_bf16_m16`` or ``kernels`` say."""
        for name in names:
            file = name if name == "kernels" else f"{name}_sm{self.capability}"
            link = self.folder / f"{file}.so"
            if not link.exists():
                link.symlink_to(build((PTX / f"{file}.ptx").read_text(), name=f"{file}.ptx"))

    def call(self, name: str, *arguments: object) -> None:
        """Call a function; a message that it returns is raised."""
        function = getattr(self.library, name)
        function.restype = ctypes.c_char_p
        message = function(*(_as_c(argument) for argument in arguments))
        if message is not None:
            raise RuntimeError(message.decode())


def _as_c(argument):
    if isinstance(argument, OpAttributes):
        return "".join(
            f"{field.name}={int(value) if isinstance(value, bool) else value}\n"
            for field in fields(argument)
            for value in [getattr(argument, field.name)]
        ).encode()
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return ctypes.c_void_p(argument.ctypes.data)
    if isinstance(argument, bool):
        return ctypes.c_bool(argument)
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, str):
        return ctypes.c_int32(list(ELEMENTS).index(argument))
    return argument


def aligned(array: np.ndarray, alignment: int = 256) -> np.ndarray:
    """A copy that begins where device memory may."""
    memory = np.empty(array.nbytes + alignment, np.uint8)
    begin = -memory.ctypes.data % alignment
    copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
