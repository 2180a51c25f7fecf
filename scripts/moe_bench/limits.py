"""What the machine can do: reading memory, multiply-adds, and PyTorch's dense products."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from moe_bench.sessions import THREADS

# More than any cache holds, and what is prefetched behind it.
_BUFFER, _AHEAD = 1 << 30, 1 << 13
_SOURCE = Path(__file__).with_suffix(".cpp")
# Rows and columns of a dense product that no cache holds and every core is busy with.
_ROWS, _COLUMNS = 1024, 4096


class Limits:
    """Measures limits; built with the C++ compiler of this machine.

    Args:
        folder: Where the library is built.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "liblimits.so"
        compiler = os.environ.get("CXX", "c++")
        flags = ["-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared"]
        subprocess.run([compiler, *flags, "-pthread", str(_SOURCE), "-o", str(path)], check=True)
        self._library = ctypes.CDLL(str(path))
        self._library.allocate.restype = ctypes.c_void_p
        self._library.allocate.argtypes = [ctypes.c_int64]
        self._library.read_bandwidth.restype = ctypes.c_double
        self._library.read_bandwidth.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
        self._library.fp32_peak.restype = ctypes.c_double
        self._data = self._library.allocate(_BUFFER)
        if not self._data:
            raise MemoryError(f"{_BUFFER} bytes to read")
        self._position = 0

    def read(self, size: int) -> float:
        """Bytes per second of reading ``size`` bytes, others than the last call's."""
        size = min(size, _BUFFER // 2)
        if self._position + size > _BUFFER - _AHEAD:
            self._position = 0
        start = self._data + self._position
        self._position += size // 64 * 64
        return float(self._library.read_bandwidth(start, size, THREADS))

    def fp32_peak(self) -> float:
        """float32 operations per second in registers."""
        return float(self._library.fp32_peak(THREADS))


def dense_rate(hidden: int, dtype: torch.dtype) -> Callable[[], float]:
    """A function that measures PyTorch's dense product, operations per second."""
    x = torch.randn(_ROWS, hidden).to(dtype)
    weight = torch.randn(_COLUMNS, hidden).to(dtype)

    def measure() -> float:
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        return 2 * _ROWS * _COLUMNS * hidden / (time.perf_counter() - start)

    measure()
    return measure


def median(values: list[float]) -> float:
    """The middle of some measurements."""
    return float(np.median(values))
