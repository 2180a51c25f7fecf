"""Attributes of the three ops for experts that are not the standard FFN.

``ExpertDispatch`` sorts the tokens' slots by expert into rows, ``GroupedMatMul`` multiplies each
row by its expert's matrix, ``ExpertCombine`` adds a token's rows up by weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from moe_export.ops.record import (
    OpAttributes,
    WeightLayout,
    WeightType,
    documented,
    require,
)
from moe_export.ops.storage import ExpertMatrix, WeightStorage

MAX_ROWS = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class ExpertDispatch(OpAttributes):
    """Attributes of ``ExpertDispatch(x, expert_ids) -> (rows, row_map, group_ends, ...)``."""

    op_type: ClassVar[str] = "ExpertDispatch"
    prefix: ClassVar[str] = "dispatch"

    num_experts: int = field(metadata={"doc": "experts that rows are sorted for, E"})
    hidden_size: int = field(metadata={"doc": "width of x and of a row, H"})
    first_expert: int = documented(0, "id of the first of these experts")

    def check_values(self) -> None:
        """Check the values that need no tensor (dispatch_c3)."""
        for name, minimum in (("num_experts", 1), ("hidden_size", 1), ("first_expert", 0)):
            _check_minimum(name, getattr(self, name), minimum, "dispatch_c3")

    def input_names(self) -> tuple[str, ...]:
        """Tokens and the experts they chose."""
        return ("x", "expert_ids")

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the inputs' shapes (dispatch_c1, dispatch_c2)."""
        x, ids = shapes["x"], shapes["expert_ids"]
        require(
            len(x) == 2 and x[1] == self.hidden_size,
            "dispatch_c1",
            f"x must be [T, H = {self.hidden_size}]; found shape {list(x)}",
        )
        require(
            len(ids) == 2 and ids[0] == x[0] and ids[1] >= 1,
            "dispatch_c2",
            f"expert_ids must be [T = {x[0]}, K]; found shape {list(ids)}",
        )

    def check_row_count(self, num_rows: int) -> None:
        """Check that rows can be counted in int32 (dispatch_c4); for sizes that are numbers."""
        require(
            num_rows <= MAX_ROWS,
            "dispatch_c4",
            f"expert_ids has {num_rows} slots; row_map numbers at most {MAX_ROWS}",
        )


@dataclass(frozen=True, kw_only=True)
class GroupedMatMul(OpAttributes):
    """Attributes of ``GroupedMatMul(rows, weight, group_ends, ...) -> y``."""

    op_type: ClassVar[str] = "GroupedMatMul"
    prefix: ClassVar[str] = "matmul"

    num_experts: int = field(metadata={"doc": "experts whose matrices the node holds, E"})
    in_features: int = field(metadata={"doc": "width of rows"})
    out_features: int = field(metadata={"doc": "width of y"})
    has_bias: bool = documented(False, "an input `bias` is there")
    weight_type: WeightType = documented("fp32", "storage of the weight")
    block_size: int = documented(0, "inputs per scale along in_features; 0 for one scale per row")
    has_zero_point: bool = documented(False, "an input `zero` is there")
    weight_layout: WeightLayout = documented(
        "row_major", "`[E, out_features, in_features]`, or packed"
    )

    def check_values(self) -> None:
        """Check the values that need no tensor (matmul_c5, matmul_c6)."""
        for name in ("num_experts", "in_features", "out_features"):
            _check_minimum(name, getattr(self, name), 1, "matmul_c5")
        self.storage.check(self.matrices, "matmul_c6")

    @property
    def matrices(self) -> tuple[ExpertMatrix, ...]:
        """The one that it multiplies with."""
        return (ExpertMatrix("", self.out_features, self.in_features),)

    @property
    def storage(self) -> WeightStorage:
        """How ``weight`` is stored."""
        return WeightStorage(
            self.weight_type, self.block_size, self.has_zero_point, self.weight_layout
        )

    def input_names(self) -> tuple[str, ...]:
        """The three fixed inputs, then bias, scale and zero points as the attributes say."""
        names = ["rows", "weight", "group_ends"]
        if self.has_bias:
            names.append("bias")
        return (*names, *self.storage.parts[1:])

    def parameter_names(self) -> tuple[str, ...]:
        """All inputs but ``rows`` and ``group_ends``."""
        return tuple(name for name in self.input_names() if name not in ("rows", "group_ends"))

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the stored inputs by name."""
        e, (matrix,) = self.num_experts, self.matrices
        shapes: dict[str, tuple[int, ...]] = {"bias": (e, matrix.rows)}
        shapes |= self.storage.shapes(e, matrix)
        return {name: shapes[name] for name in self.parameter_names()}

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the inputs' shapes (matmul_c1 to matmul_c4)."""
        rows, ends = shapes["rows"], shapes["group_ends"]
        require(
            len(rows) == 2 and rows[1] == self.in_features,
            "matmul_c1",
            f"rows must be [M, in_features = {self.in_features}]; found shape {list(rows)}",
        )
        require(
            ends == (self.num_experts,),
            "matmul_c3",
            f"group_ends must be [E = {self.num_experts}]; found {list(ends)}",
        )
        for name, expected in self.weight_shapes().items():
            require(
                shapes[name] == expected,
                "matmul_c4" if name == "bias" else "matmul_c2",
                f"{name} must be {list(expected)}; found {list(shapes[name])}",
            )

    def check_group_ends(self, group_ends: Sequence[int], num_rows: int) -> None:
        """Check the values of ``group_ends`` for ``num_rows`` rows (matmul_c7)."""
        begin = 0
        for expert, end in enumerate(group_ends):
            require(
                begin <= end <= num_rows,
                "matmul_c7",
                f"group_ends must ascend within [0, M = {num_rows}]; found {end} after {begin} "
                f"for expert {expert}",
            )
            begin = end


@dataclass(frozen=True, kw_only=True)
class ExpertCombine(OpAttributes):
    """Attributes of ``ExpertCombine(rows, row_map, expert_weights) -> y``."""

    op_type: ClassVar[str] = "ExpertCombine"
    prefix: ClassVar[str] = "combine"

    hidden_size: int = field(metadata={"doc": "width of rows and y, N"})

    def check_values(self) -> None:
        """Check the values that need no tensor (combine_c5)."""
        _check_minimum("hidden_size", self.hidden_size, 1, "combine_c5")

    def input_names(self) -> tuple[str, ...]:
        """Rows, where each slot's row is, and the slots' weights."""
        return ("rows", "row_map", "expert_weights")

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the inputs' shapes (combine_c1 to combine_c3)."""
        rows, row_map, weights = shapes["rows"], shapes["row_map"], shapes["expert_weights"]
        require(
            len(rows) == 2 and rows[1] == self.hidden_size,
            "combine_c1",
            f"rows must be [M, N = {self.hidden_size}]; found shape {list(rows)}",
        )
        require(
            len(row_map) == 2 and row_map[1] >= 1,
            "combine_c2",
            f"row_map must be [T, K]; found shape {list(row_map)}",
        )
        require(
            weights == row_map,
            "combine_c3",
            f"expert_weights must have row_map's shape {list(row_map)}; found {list(weights)}",
        )

    def check_row_map(self, smallest: int, largest: int, num_rows: int) -> None:
        """Check the least and the greatest value of ``row_map`` (combine_c4)."""
        for row in (smallest, largest):
            require(
                -1 <= row < num_rows,
                "combine_c4",
                f"row_map must hold -1 or a row in [0, M = {num_rows}); found {row}",
            )


def _check_minimum(name: str, value: int, minimum: int, label: str) -> None:
    require(value >= minimum, label, f"{name} must be at least {minimum}; found {value}")
