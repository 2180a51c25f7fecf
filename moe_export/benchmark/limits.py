"""What the machine can do, measured beside every sample: reading memory, and multiplying."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import numpy as np

from moe_export.errors import EnvironmentLacksError
from moe_export.runners.library import ort_library_path

# More than any cache holds; a call reads a part that the call before did not.
_BUFFER_BYTES = 512 << 20
_LEAST_READ, _MOST_READ = 64 << 20, _BUFFER_BYTES // 2
# Reading for so long lets the memory reach its speed.
_SETTLE_S = 0.03
# Kinds of products, as plugins/cpu/machine_limits.h numbers them, by the weights' type.
_KINDS = {"bf16": 1, "int8": 2, "int4": 2, "mxfp4": 2}
_KIND_NAMES = ("float32", "bfloat16", "int8")


def count_cores() -> int:
    """Physical cores that this process may use: as many threads as are worth starting."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.is_file() else str(cpu))
    return len(cores)


class Limits:
    """Measures the limits of this machine with a number of threads.

    Args:
        threads: As many as the bundle runs with.

    Raises:
        EnvironmentLacksError: the op library is missing, or older than this package.
    """

    def __init__(self, threads: int) -> None:
        path = ort_library_path()
        library = ctypes.CDLL(str(path))
        try:
            self._read = library.moe_export_read_bandwidth
            self._multiply = library.moe_export_multiply_rate
        except AttributeError as error:
            raise EnvironmentLacksError(
                f"{path} is older than this package: install again with pip install '.[cpu]'"
            ) from error
        self._read.restype = self._multiply.restype = ctypes.c_double
        self._read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
        self._multiply.argtypes = [ctypes.c_int, ctypes.c_int]
        self._threads = threads
        self._data = np.full(_BUFFER_BYTES, 1, np.uint8)  # written, so that it is there
        self._position = 0

    def read_bandwidth(self, size: int) -> float:
        """Bytes per second of reading about ``size`` bytes, all threads together."""
        size = min(max(size, _LEAST_READ), _MOST_READ) // 64 * 64
        begin, rate = time.perf_counter(), self._read_once(size)
        while time.perf_counter() - begin < _SETTLE_S:
            rate = self._read_once(size)
        return rate

    def _read_once(self, size: int) -> float:
        if self._position + size > _BUFFER_BYTES:
            self._position = 0
        start = self._data.ctypes.data + self._position
        self._position += size
        return self._started(self._read(start, size, self._threads))

    def multiply_rate(self, weight_type: str) -> tuple[float, str]:
        """Multiplications and additions per second of products with such weights.

        Returns:
            The rate, and what is multiplied: float32 where the CPU has nothing narrower.
        """
        kind = _KINDS.get(weight_type, 0)
        rate = float(self._multiply(kind, self._threads))
        if rate > 0:
            return rate, _KIND_NAMES[kind]
        return self._started(self._multiply(0, self._threads)), _KIND_NAMES[0]

    def _started(self, rate: float) -> float:
        if not rate > 0:
            raise EnvironmentLacksError(f"{self._threads} threads cannot be started: pass fewer")
        return float(rate)
