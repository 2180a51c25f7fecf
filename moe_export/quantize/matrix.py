"""From a float32 matrix to its stored parts, for every way of storing it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_export.errors import UsageError
from moe_export.ops.storage import WeightStorage
from moe_export.quantize.int4 import quantize_int4
from moe_export.quantize.mxfp4 import encode_mxfp4

Array = NDArray[Any]
Float = NDArray[np.float32]

_INT8_LARGEST = 127
_E4M3_LARGEST = 448


def quantize_matrix(storage: WeightStorage, matrix: Float) -> dict[str, Array]:
    """Round one expert's matrix to a row-major storage.

    Args:
        storage: How it is to be stored.
        matrix: ``[N, K]`` float32.

    Returns:
        The parts that ``storage`` has by name: ``weight``, ``scale`` and ``zero``.

    Raises:
        UsageError: the matrix cannot be stored so; says what would.
    """
    kind = storage.weight_type
    if kind == "mxfp4":
        return encode_mxfp4(matrix)
    if kind == "fp32":
        return {"weight": matrix}
    if not np.isfinite(matrix).all():
        raise UsageError(f"it holds NaN or infinity, which {kind} weights do not: keep fp32")
    if kind == "bf16":
        return {"weight": _rounded(matrix, ml_dtypes.bfloat16, "fp32")}
    if kind == "fp16":
        return {"weight": _rounded(matrix, np.float16, "bf16")}
    if kind == "int8":
        return quantize_int8(matrix)
    if kind == "fp8":
        return quantize_fp8(matrix)
    if kind == "int4":
        return quantize_int4(matrix, storage.block_size, zero_points=storage.has_zero_point)
    raise UsageError(f"no weights are rounded to {kind}")


def quantize_int8(matrix: Float) -> dict[str, Array]:
    """Round every row to 255 steps, symmetric around zero.

    Args:
        matrix: ``[N, K]``, finite.

    Returns:
        ``weight`` ``[N, K]`` int8 in [-127, 127], and ``scale`` ``[N]`` float32.
    """
    largest = np.abs(matrix).max(axis=1)
    scale = (largest / np.float32(_INT8_LARGEST)).astype(np.float32)
    scale = np.where(scale > 0, scale, np.float32(1))
    steps = np.rint(matrix / scale[:, None])
    codes = np.clip(steps, -_INT8_LARGEST, _INT8_LARGEST).astype(np.int8)
    return {"weight": codes, "scale": scale}


def quantize_fp8(matrix: Float) -> dict[str, Array]:
    """Round every row to e4m3fn, ties to even, its largest weight to the largest code.

    Args:
        matrix: ``[N, K]``, finite.

    Returns:
        ``weight`` ``[N, K]`` int8 bytes of codes, and ``scale`` ``[N]`` float32.
    """
    largest = np.abs(matrix).max(axis=1)
    scale = (largest / np.float32(_E4M3_LARGEST)).astype(np.float32)
    scale = np.where(scale > 0, scale, np.float32(1))
    steps = np.clip(matrix / scale[:, None], -_E4M3_LARGEST, _E4M3_LARGEST)
    return {"weight": steps.astype(ml_dtypes.float8_e4m3fn).view(np.int8), "scale": scale}


def _rounded(matrix: Float, dtype: type[np.generic], wider: str) -> Array:
    """To the nearest number of the type, ties to even."""
    with np.errstate(over="ignore"):
        narrow = matrix.astype(dtype)
    if not np.isfinite(narrow.astype(np.float32)).all():
        raise UsageError(
            f"its largest weight, {np.abs(matrix).max():.3g}, is beyond {np.dtype(dtype).name}: "
            f"take {wider}"
        )
    return narrow


def stores_exactly(storage: WeightStorage, matrix: Float) -> bool:
    """Whether a float or MXFP4 storage holds every weight of ``matrix`` without rounding."""
    try:
        parts = quantize_matrix(storage, matrix)
    except UsageError:
        return False
    if storage.weight_type == "mxfp4":
        return True  # or it would have been refused
    return np.array_equal(parts["weight"].astype(np.float32), matrix)
