"""Sizes of the packed layout ``cpu_v1``, from the sizes of a matrix alone.

The layout itself is described in ``plugins/README.md`` under "Stored weights".
"""

from __future__ import annotations

PANEL_ROWS = 32
# Gated experts: a panel holds this many gate rows, then as many up rows.
GATED_PANEL_ROWS = PANEL_ROWS // 2
# Columns are padded to a multiple of this and of the block.
COLUMN_STEP = 64

_WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_SCALE_BYTES = 4 * PANEL_ROWS
# Zero points of a block, a byte each, filled up to a cache line.
_ZERO_BYTES = 64


def padded_columns(columns: int, block_size: int = 0) -> int:
    """``columns`` rounded up to a multiple of 64 and of the block."""
    step = max(COLUMN_STEP, block_size)
    return -(-columns // step) * step


def num_panels(rows: int, *, gated: bool = False) -> int:
    """Panels of a matrix of ``rows`` rows; with ``gated`` half of them are gate rows."""
    if gated:
        return -(-rows // 2 // GATED_PANEL_ROWS)
    return -(-rows // PANEL_ROWS)


def panel_bytes(
    weight_type: str, columns: int, *, block_size: int = 0, has_zero_point: bool = False
) -> int:
    """Bytes of one panel of 32 rows.

    Args:
        weight_type: A ``weight_type`` of the contract.
        columns: Columns of the matrix, not padded.
        block_size: Columns that share a scale; 0 for one scale per row.
        has_zero_point: Each block has its zero points.

    Raises:
        ValueError: the type has no packed form.
    """
    wide = padded_columns(columns, block_size)
    if weight_type in _WEIGHT_BYTES:
        scale = _SCALE_BYTES if weight_type == "int8" else 0
        return scale + wide * PANEL_ROWS * _WEIGHT_BYTES[weight_type]
    if weight_type == "int4":
        zeros = _ZERO_BYTES if has_zero_point else 0
        return wide // block_size * (_SCALE_BYTES + zeros + block_size * PANEL_ROWS // 2)
    if weight_type == "mxfp4":
        return wide // block_size * (PANEL_ROWS + block_size * PANEL_ROWS // 2)
    raise ValueError(f"weight_type {weight_type} has no packed form")


def packed_bytes(
    weight_type: str,
    rows: int,
    columns: int,
    *,
    gated: bool = False,
    block_size: int = 0,
    has_zero_point: bool = False,
) -> int:
    """Bytes of one expert's matrix ``[rows, columns]`` in the layout ``cpu_v1``.

    Args:
        weight_type: A ``weight_type`` of the contract.
        rows: Rows; of a gated up projection gate and up rows together.
        columns: Columns.
        gated: The matrix is a gated up projection.
        block_size: Columns that share a scale; 0 for one scale per row.
        has_zero_point: Each block has its zero points.

    Raises:
        ValueError: the type has no packed form.
    """
    panel = panel_bytes(weight_type, columns, block_size=block_size, has_zero_point=has_zero_point)
    return num_panels(rows, gated=gated) * panel
