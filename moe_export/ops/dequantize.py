"""The numbers that stored weights stand for, in readable NumPy; see ``plugins/README.md``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.ops.record import require
from moe_export.ops.storage import WeightStorage

Array = NDArray[Any]
Float = NDArray[np.float32]

# What the codes of e2m1 stand for: a sign, two bits of exponent, one of mantissa.
E2M1_VALUES = np.array(
    [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32
)


def _e4m3_values() -> Float:
    """What the codes of e4m3fn stand for: a sign, four bits of exponent, three of mantissa."""
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    fraction = np.where(exponent > 0, 8 + mantissa, mantissa).astype(np.float32)
    values = np.ldexp(fraction, np.maximum(exponent, 1) - 10)
    values[127] = np.nan  # the one code that is no number; there is no infinity
    return np.concatenate([values, -values])


E4M3_VALUES = _e4m3_values()
# An int4 without a zero point stands for zero at this code.
SYMMETRIC_ZERO = 8
# Exponents of e8m0 are stored with this added.
_E8M0_BIAS = 127


def dequantize(storage: WeightStorage, parts: Mapping[str, Array], columns: int) -> Float:
    """The float32 weights of row-major storage.

    Args:
        storage: How they are stored.
        parts: ``weight`` ``[..., N, K]``, of 4-bit codes ``[..., N, ceil(K / 2)]`` bytes, and the
            ``scale`` and ``zero`` that belong to it.
        columns: K.

    Returns:
        ``[..., N, K]``.

    Raises:
        ContractError: the storage is not row-major.
    """
    kind = storage.weight_type
    require(
        storage.layout == "row_major",
        "weight_storage",
        f"{kind} weights in the layout {storage.layout} have no meaning row by row",
    )
    weight = parts["weight"]
    if kind in ("fp32", "fp16", "bf16"):
        return weight.astype(np.float32)
    scale = parts["scale"]
    if kind == "int8":
        return np.asarray(scale[..., None] * weight.astype(np.float32), np.float32)
    if kind == "fp8":
        return np.asarray(scale[..., None] * E4M3_VALUES[weight.view(np.uint8)], np.float32)
    codes = unpack_nibbles(weight, columns)
    if kind == "mxfp4":
        powers = np.ldexp(np.float32(1), scale.view(np.uint8).astype(np.int32) - _E8M0_BIAS)
        return np.asarray(_per_column(powers, 32, columns) * E2M1_VALUES[codes], np.float32)
    block = storage.block_size
    zero = parts["zero"] if storage.has_zero_point else np.full_like(scale, SYMMETRIC_ZERO)
    steps = codes.astype(np.float32) - _per_column(zero.astype(np.float32), block, columns)
    return np.asarray(_per_column(scale, block, columns) * steps, np.float32)


def unpack_nibbles(packed: Array, columns: int) -> NDArray[np.uint8]:
    """Codes in 0..15, ``[..., columns]``, of bytes that hold two each, the lower half first."""
    halves = packed.view(np.uint8)
    codes = np.stack([halves & 15, halves >> 4], axis=-1)
    return codes.reshape(*packed.shape[:-1], -1)[..., :columns]


def _per_column(values: Array, block: int, columns: int) -> Array:
    """The value of each column's block."""
    return np.repeat(values, block, axis=-1)[..., :columns]
