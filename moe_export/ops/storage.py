"""How expert weights are stored: what goes with each ``weight_type``, and the tensors' shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moe_export.ops.padded_rows import padded_rows_bytes
from moe_export.ops.panels import packed_bytes
from moe_export.ops.record import QUANTIZED_TYPES, WeightLayout, WeightType, require

# Columns that may share a scale, by type; 0 is one scale per row. Other types have no scales.
BLOCK_SIZES: Mapping[str, tuple[int, ...]] = {
    "int8": (0,),
    "int4": (32, 64, 128),
    "fp8": (0,),
    "mxfp4": (32,),
}
# Types that each packed layout has a form of.
PACKED_TYPES: Mapping[str, tuple[str, ...]] = {
    "cpu_v1": ("fp32", "fp16", "bf16", "int8", "int4", "mxfp4"),
    "cuda_v1": ("fp32", "fp16", "bf16", "int8", "int4", "fp8"),
}
_MXFP4_BLOCK = 32


@dataclass(frozen=True)
class ExpertMatrix:
    """A matrix ``[E, N, K]`` that a node multiplies with.

    Attributes:
        prefix: What the names of its inputs begin with: ``up_``, ``down_`` or nothing.
        rows: N.
        columns: K.
        gated: Its rows are the gate's, then the up projection's: a packed layout mixes them.
    """

    prefix: str
    rows: int
    columns: int
    gated: bool = False


@dataclass(frozen=True)
class WeightStorage:
    """The attributes that say how a matrix ``[E, N, K]`` is stored.

    Attributes:
        weight_type: Type of a weight.
        block_size: Columns that share a scale; 0 for one scale per row, and where there is none.
        has_zero_point: Each block has a zero point; without it an int4's is 8.
        layout: Row-major with scales and zero points of their own, or packed with them.
    """

    weight_type: WeightType = "fp32"
    block_size: int = 0
    has_zero_point: bool = False
    layout: WeightLayout = "row_major"

    @property
    def parts(self) -> tuple[str, ...]:
        """Which tensors hold a matrix: ``weight``, then ``scale`` and ``zero`` as needed."""
        if self.layout != "row_major" or self.weight_type not in QUANTIZED_TYPES:
            return ("weight",)
        return ("weight", "scale", "zero") if self.has_zero_point else ("weight", "scale")

    def check(self, matrices: Sequence[ExpertMatrix], label: str) -> None:
        """Check that the attributes go together, and suit the matrices.

        Raises:
            ContractError: begins with ``label``.
        """
        kind, block = self.weight_type, self.block_size
        require(
            kind in QUANTIZED_TYPES or (block == 0 and not self.has_zero_point),
            label,
            f"block_size and zero points belong to quantized weights; weight_type is {kind}",
        )
        require(block >= 0, label, f"block_size must not be negative; found {block}")
        if kind in BLOCK_SIZES:
            allowed = BLOCK_SIZES[kind]
            require(
                block in allowed,
                label,
                f"block_size of {kind} must be {' or '.join(map(str, allowed))}; found {block}",
            )
            require(
                kind == "int4" or not self.has_zero_point,
                label,
                f"zero points belong to int4; weight_type is {kind}",
            )
        packed = PACKED_TYPES.get(self.layout, (kind,))
        require(
            kind in packed,
            label,
            f"weight_layout {self.layout} has no form of {kind}; it has {', '.join(packed)}",
        )
        columns = [matrix.columns for matrix in matrices]
        require(
            kind != "mxfp4" or all(count % _MXFP4_BLOCK == 0 for count in columns),
            label,
            f"mxfp4 needs multiples of {_MXFP4_BLOCK} columns; found {columns}",
        )

    def check_plain(self, label: str) -> None:
        """Check that the weights are row-major float32, for a backend that takes nothing else.

        Raises:
            ContractError: begins with ``label``.
        """
        require(
            self == WeightStorage(),
            label,
            "this backend computes weight_type fp32 and weight_layout row_major only; found "
            f"{self.weight_type} and {self.layout}",
        )

    def shapes(self, num_experts: int, matrix: ExpertMatrix) -> dict[str, tuple[int, ...]]:
        """Shape of each part of a matrix."""
        if self.layout != "row_major":
            return {"weight": (num_experts, self.packed_bytes(matrix))}
        columns, rows = matrix.columns, matrix.rows
        width = -(-columns // 2) if self.weight_type in ("int4", "mxfp4") else columns
        shapes: dict[str, tuple[int, ...]] = {"weight": (num_experts, rows, width)}
        for part in self.parts[1:]:
            blocks = (-(-columns // self.block_size),) if self.block_size else ()
            shapes[part] = (num_experts, rows, *blocks)
        return shapes

    def packed_bytes(self, matrix: ExpertMatrix) -> int:
        """Bytes of one expert's matrix in a packed layout.

        Raises:
            ValueError: the layout has no form of the type.
        """
        if self.layout == "cuda_v1":
            return padded_rows_bytes(
                self.weight_type,
                matrix.rows,
                matrix.columns,
                block_size=self.block_size,
                has_zero_point=self.has_zero_point,
            )
        return packed_bytes(
            self.weight_type,
            matrix.rows,
            matrix.columns,
            gated=matrix.gated,
            block_size=self.block_size,
            has_zero_point=self.has_zero_point,
        )
