"""What PyTorch's dense products reach; the machine's limits are the op library's."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

# Rows and columns of a dense product that no cache holds and every core is busy with.
_ROWS, _COLUMNS = 1024, 4096


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
