"""Sizes of the packed layout ``cuda_v1``, from the sizes of a matrix alone.

The layout itself is described in ``plugins/README.md`` under "Stored weights".
"""

from __future__ import annotations

from moe_export.ops.panels import padded_columns

# Where an expert's bytes end: what follows begins on a cache line.
EXPERT_ALIGNMENT = 128
# An int4 byte holds codes of two columns that are this far apart, in blocks of twice as many.
NIBBLE_DISTANCE = 32

_WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
_SCALE_BYTES = 4


def num_blocks(columns: int, block_size: int) -> int:
    """Blocks of a row, those that fill it up included."""
    return padded_columns(columns, block_size) // block_size


def weight_bytes(weight_type: str, rows: int, columns: int, *, block_size: int = 0) -> int:
    """Bytes of an expert's weights without scales: where the scales begin.

    Args:
        weight_type: A ``weight_type`` of the contract.
        rows: Rows of the matrix.
        columns: Columns of the matrix, not padded.
        block_size: Columns that share a scale; 0 for one scale per row.

    Raises:
        ValueError: the type has no form in this layout.
    """
    wide = padded_columns(columns, block_size)
    if weight_type in _WEIGHT_BYTES:
        return rows * wide * _WEIGHT_BYTES[weight_type]
    if weight_type == "int4":
        return rows * wide // 2
    raise ValueError(f"weight_type {weight_type} has no form in cuda_v1")


def padded_rows_bytes(
    weight_type: str, rows: int, columns: int, *, block_size: int = 0, has_zero_point: bool = False
) -> int:
    """Bytes of one expert's matrix ``[rows, columns]`` in the layout ``cuda_v1``.

    Args:
        weight_type: A ``weight_type`` of the contract.
        rows: Rows; of a gated up projection gate and up rows together.
        columns: Columns, not padded.
        block_size: Columns that share a scale; 0 for one scale per row.
        has_zero_point: Each block has its zero points.

    Raises:
        ValueError: the type has no form in this layout.
    """
    size = weight_bytes(weight_type, rows, columns, block_size=block_size)
    if weight_type in ("int8", "fp8"):
        size += rows * _SCALE_BYTES
    elif weight_type == "int4":
        per_block = _SCALE_BYTES + (1 if has_zero_point else 0)
        size += rows * num_blocks(columns, block_size) * per_block
    return -(-size // EXPERT_ALIGNMENT) * EXPERT_ALIGNMENT
