"""Weights in layout ``cpu_v1``: panels of 32 rows, one column after the other.

``plugins/README.md`` defines the layout and ``plugins/cpu/panel_layout.h`` reads it. A panel is one
stream of bytes that a kernel multiplies with any number of tokens; scales and zero points lie
inside it, before the weights that they belong to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.ops.dequantize import unpack_nibbles
from moe_export.ops.panels import COLUMN_STEP, GATED_PANEL_ROWS, PANEL_ROWS, padded_columns
from moe_export.ops.record import WeightType

Array = NDArray[Any]
Bytes = NDArray[np.int8]

_MXFP4_BLOCK = 32


def pack_rows(
    weight_type: WeightType,
    weight: Array,
    scale: Array | None = None,
    zero: Array | None = None,
    *,
    block_size: int = 0,
    gated: bool = False,
) -> Bytes:
    """Pack one expert's row-major matrix.

    Args:
        weight_type: How the weights are stored.
        weight: ``[N, K]`` float32, float16, bfloat16 or int8; ``[N, K / 2]`` bytes of codes for
            int4 and mxfp4, the lower half of a byte first.
        scale: ``[N]`` (int8) or ``[N, K / block_size]`` (int4) float32; bytes of exponents (mxfp4).
        zero: ``[N, K / block_size]`` codes that mean zero; 8 where left out.
        block_size: Columns per scale; 0 for one scale per row.
        gated: The rows are the gate's, then the up projection's: a panel holds 16 of each.

    Returns:
        The panels one after the other, ``[bytes]``.

    Raises:
        ValueError: no kernel reads ``weight_type`` in this layout.
    """
    if weight_type == "fp32":
        panels = _panel_columns(weight, gated)
        return _bytes(panels.astype("<f4", copy=False).transpose(0, 2, 1))
    if weight_type in ("fp16", "bf16"):
        return _bytes(_grouped(_panel_columns(weight.view("<u2"), gated), 2))
    if weight_type == "int8" and scale is not None:
        panels = _grouped(_panel_columns(weight, gated), 4)
        return _bytes(_raw(_panel_rows(scale, gated)), _raw(panels))
    if weight_type == "int4" and scale is not None:
        return _pack_int4(weight, scale, zero, block_size, gated)
    if weight_type == "mxfp4" and scale is not None:
        return _pack_mxfp4(weight, scale, gated)
    raise ValueError(f"cpu_v1 has no panels of {weight_type} with these scales")


def _pack_int4(
    weight: Array, scale: Array, zero: Array | None, block_size: int, gated: bool
) -> Bytes:
    blocks = padded_columns(scale.shape[1] * block_size, block_size) // block_size
    scales = _padded(_panel_rows(scale, gated), blocks)
    codes = _padded(_panel_rows(_codes(weight), gated), blocks * block_size)
    parts = [_raw(scales.astype("<f4").transpose(0, 2, 1))]
    if zero is not None:
        zeros = _padded(_panel_rows(zero.view(np.uint8), gated), blocks)
        padding = np.zeros((len(zeros), blocks, PANEL_ROWS), np.uint8)
        parts += [zeros.transpose(0, 2, 1), padding]
    split = codes.reshape(len(codes), PANEL_ROWS, blocks, block_size)
    parts.append(_nibbles(split.transpose(0, 2, 1, 3)))
    return _bytes(*(part.reshape(len(codes), blocks, -1) for part in parts))


def _pack_mxfp4(weight: Array, scale: Array, gated: bool) -> Bytes:
    codes = _panel_columns(_codes(weight), gated)
    pairs = codes.shape[2] // COLUMN_STEP
    scales = _padded(_panel_rows(scale.view(np.uint8), gated), 2 * pairs)
    per_pair = scales.reshape(len(scales), PANEL_ROWS, pairs, 2).transpose(0, 2, 3, 1)
    split = codes.reshape(len(codes), PANEL_ROWS, 2 * pairs, _MXFP4_BLOCK).transpose(0, 2, 1, 3)
    return _bytes(*(part.reshape(len(codes), pairs, -1) for part in (per_pair, _nibbles(split))))


def _codes(packed: Array) -> Array:
    """All codes of 4 bits, ``[N, 2 * bytes]``."""
    return unpack_nibbles(packed, 2 * packed.shape[1])


def _panel_rows(rows: Array, gated: bool) -> Array:
    """``[panels, 32, ...]`` of ``[N, ...]``, zeros at the end."""
    parts = np.split(rows, 2) if gated else [rows]
    height = PANEL_ROWS // len(parts)
    shaped = []
    for part in parts:
        filled = np.concatenate(
            [part, np.zeros((-len(part) % height, *part.shape[1:]), part.dtype)]
        )
        shaped.append(filled.reshape(-1, height, *part.shape[1:]))
    return np.concatenate(shaped, axis=1)


def _panel_columns(rows: Array, gated: bool) -> Array:
    """``[panels, 32, K]`` of ``[N, columns]``, K the columns that are stored."""
    return _padded(_panel_rows(rows, gated), padded_columns(rows.shape[1]))


def _padded(panels: Array, width: int) -> Array:
    """``[panels, 32, width]`` with zeros at the end."""
    missing = width - panels.shape[2]
    return np.pad(panels, ((0, 0), (0, 0), (0, missing))) if missing else panels


def _grouped(panels: Array, group: int) -> Array:
    """``[panels, K / group, 32, group]``."""
    split = panels.reshape(*panels.shape[:2], -1, group)
    return split.transpose(0, 2, 1, 3)


def _nibbles(codes: Array) -> Array:
    """``[..., block / 4, 16, 4]`` bytes of ``[..., 32, block]`` codes: row r, and r + 16 above."""
    both = codes[..., :GATED_PANEL_ROWS, :] | codes[..., GATED_PANEL_ROWS:, :] << 4
    groups = both.reshape(*both.shape[:-1], -1, 4)
    return np.moveaxis(groups, -3, -2)


def _raw(values: Array) -> Array:
    """``[panels, bytes]``."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)


def _bytes(*parts: Array) -> Bytes:
    """Bytes of the parts of each panel, joined along the last axis."""
    if len(parts) == 1:
        return np.ascontiguousarray(parts[0]).reshape(-1).view(np.int8)
    return np.concatenate(parts, axis=-1).reshape(-1).view(np.int8)
