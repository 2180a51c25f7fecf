"""Codes of weights that are MXFP4 already: found again from their values, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import UsageError
from moe_export.ops.dequantize import E2M1_VALUES, dequantize
from moe_export.ops.storage import WeightStorage
from moe_export.quantize.int4 import pack_nibbles

Array = NDArray[Any]
Float = NDArray[np.float32]

MXFP4 = WeightStorage("mxfp4", 32)
_BLOCK = 32
_BIAS = 127
# The largest e2m1 is 6 = 1.5 * 2^2.
_LARGEST = E2M1_VALUES.max()
# Twice an e2m1 is an integer, and this is its code.
_CODE_OF_TWICE = {int(2 * value): code for code, value in enumerate(E2M1_VALUES[:8])}
_CODES = np.array([_CODE_OF_TWICE.get(twice, 0) for twice in range(13)], np.uint8)


def encode_mxfp4(matrix: Float) -> dict[str, Array]:
    """MXFP4 codes and scales that stand for exactly the values of ``matrix``.

    The scale of a block is the smallest power of two under which its largest value is a code. If
    any scale holds all values of a block, so does that one: e2m1 values of at most 3 are e2m1
    values when doubled.

    Args:
        matrix: ``[N, K]``.

    Returns:
        ``weight`` ``[N, K / 2]`` int8 and ``scale`` ``[N, K / 32]`` int8, the bytes of exponents.

    Raises:
        UsageError: a value is no MXFP4 number; nothing is rounded.
    """
    rows, columns = matrix.shape
    if columns % _BLOCK:
        raise UsageError(f"MXFP4 has blocks of {_BLOCK} columns; {columns} do not divide so")
    blocks = matrix.reshape(rows, -1, _BLOCK)
    magnitude = np.abs(blocks)
    largest = magnitude.max(axis=-1)
    if not np.isfinite(largest).all():
        raise UsageError("NaN or infinity is no MXFP4 number")
    mantissa, exponent = np.frexp(largest / _LARGEST)
    # The smallest e with largest <= 6 * 2^e; blocks of zeros get 2^0.
    exponent = np.where(largest > 0, exponent - (mantissa == 0.5), 0)
    exponent = np.clip(exponent, -_BIAS, _BIAS)
    with np.errstate(over="ignore"):
        twice = np.ldexp(magnitude, 1 - exponent[..., None])
    near = np.clip(twice, 0, 2 * _LARGEST).astype(np.uint8)
    codes = _CODES[near] | np.signbit(blocks).astype(np.uint8) << 3
    parts: dict[str, Array] = {
        "weight": pack_nibbles(codes.reshape(rows, columns)),
        "scale": (exponent + _BIAS).astype(np.uint8).view(np.int8),
    }
    if not np.array_equal(dequantize(MXFP4, parts, columns), matrix):
        raise UsageError("its weights are no MXFP4 numbers")
    return parts
