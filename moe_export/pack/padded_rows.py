"""Weights in layout ``cuda_v1``: rows filled up to whole blocks of columns, then their scales.

``plugins/README.md`` defines the layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_export.ops.dequantize import SYMMETRIC_ZERO, unpack_nibbles
from moe_export.ops.padded_rows import EXPERT_ALIGNMENT, NIBBLE_DISTANCE, weight_bytes
from moe_export.ops.panels import padded_columns
from moe_export.ops.record import WeightType
from moe_export.ops.storage import ExpertMatrix, WeightStorage

Array = NDArray[Any]
Bytes = NDArray[np.int8]

_DTYPES: Mapping[str, Any] = {
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "int8": np.int8,
    "fp8": np.int8,
}


def pack_padded_rows(
    weight_type: WeightType,
    weight: Array,
    scale: Array | None = None,
    zero: Array | None = None,
    *,
    columns: int,
    block_size: int = 0,
) -> Bytes:
    """Pack one expert's row-major matrix.

    Args:
        weight_type: How the weights are stored.
        weight: ``[N, K]`` float32, float16, bfloat16 or int8; ``[N, ceil(K / 2)]`` bytes of codes
            for int4, the lower half of a byte first.
        scale: ``[N]`` (int8, fp8) or ``[N, ceil(K / block_size)]`` (int4) float32.
        zero: ``[N, ceil(K / block_size)]`` codes that mean zero; 8 where left out.
        columns: K.
        block_size: Columns per scale; 0 for one scale per row.

    Returns:
        ``[bytes]``.

    Raises:
        ValueError: no kernel reads ``weight_type`` in this layout.
    """
    if weight_type in ("fp32", "fp16", "bf16"):
        return _join(_padded(weight, padded_columns(columns)))
    if weight_type in ("int8", "fp8") and scale is not None:
        return _join(_padded(weight, padded_columns(columns)), scale.astype("<f4"))
    if weight_type == "int4" and scale is not None:
        return _pack_int4(weight, scale, zero, columns, block_size)
    raise ValueError(f"cuda_v1 has no form of {weight_type} with these scales")


def unpack_padded_rows(
    storage: WeightStorage, matrix: ExpertMatrix, data: Bytes
) -> dict[str, Array]:
    """The row-major parts of one expert's matrix: ``weight``, ``scale`` and ``zero`` as needed.

    Args:
        storage: How it is stored, row-major.
        matrix: Its sizes.
        data: ``[bytes]``, as ``pack_padded_rows`` made them.
    """
    raw, kind = data.view(np.uint8), storage.weight_type
    rows, columns = matrix.rows, matrix.columns
    width = padded_columns(columns, storage.block_size)
    end = weight_bytes(kind, rows, columns, block_size=storage.block_size)
    if kind != "int4":
        dtype = _DTYPES[kind]
        parts = {"weight": raw[:end].view(dtype).reshape(rows, width)[:, :columns]}
        if kind in ("int8", "fp8"):
            parts["scale"] = raw[end : end + 4 * rows].view("<f4")
        return parts
    halves = raw[:end].reshape(rows, -1, NIBBLE_DISTANCE)
    codes = np.stack([halves & 15, halves >> 4], axis=2).reshape(rows, width)[:, :columns]
    pairs = np.pad(codes, ((0, 0), (0, columns % 2))).reshape(rows, -1, 2)
    blocks, used = width // storage.block_size, -(-columns // storage.block_size)
    scales = raw[end : end + 4 * rows * blocks].view("<f4").reshape(blocks, rows)
    parts = {
        "weight": (pairs[..., 0] | pairs[..., 1] << 4).view(np.int8),
        "scale": scales.T[:, :used],
    }
    if storage.has_zero_point:
        begin = end + 4 * rows * blocks
        parts["zero"] = raw[begin : begin + rows * blocks].reshape(blocks, rows).T[:, :used]
    return parts


def _pack_int4(
    weight: Array, scale: Array, zero: Array | None, columns: int, block_size: int
) -> Bytes:
    width = padded_columns(columns, block_size)
    blocks = width // block_size
    zeros = np.full_like(scale, SYMMETRIC_ZERO, np.uint8) if zero is None else zero.view(np.uint8)
    # A block beyond the matrix has the scale 0: what its zero point and codes are is settled only
    # so that equal weights give equal bytes.
    beyond = SYMMETRIC_ZERO if zero is None else 0
    zeros = np.pad(zeros, ((0, 0), (0, blocks - zeros.shape[1])), constant_values=beyond)
    codes = np.repeat(zeros, block_size, axis=1)
    codes[:, :columns] = unpack_nibbles(weight, columns)
    halves = codes.reshape(len(codes), -1, 2, NIBBLE_DISTANCE)
    packed = halves[:, :, 0] | halves[:, :, 1] << 4
    parts = [packed, _padded(scale, blocks).T.astype("<f4")]
    return _join(*parts, *([] if zero is None else [zeros.T]))


def _padded(rows: Array, width: int) -> Array:
    """``[N, width]`` with zeros at the end of each row."""
    missing = width - rows.shape[1]
    if not missing:
        return rows
    wide = np.zeros((len(rows), width), rows.dtype)
    wide[:, : rows.shape[1]] = rows
    return wide


def _join(*parts: Array) -> Bytes:
    """The parts' bytes one after the other, filled up to whole cache lines."""
    raw = [np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts]
    size = sum(part.size for part in raw)
    raw.append(np.zeros(-size % EXPERT_ALIGNMENT, np.uint8))
    return np.concatenate(raw).view(np.int8)
