"""The op contract, domain ``moe_export``, version 1: the definition that all else derives from.

``plugins/README.md`` states the meaning and numbers the constraints; the same labels appear in the
errors raised here. ``scripts/generate_contract.py`` writes the C++ header and the README's
attribute tables from the records below and in ``spec_rows.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from moe_export.ops.record import (
    QUANTIZED_TYPES,
    AttributeValue,
    OpAttributes,
    WeightLayout,
    WeightType,
    documented,
    require,
)
from moe_export.ops.spec_rows import ExpertCombine, ExpertDispatch, GroupedMatMul
from moe_export.ops.storage import ExpertMatrix, WeightStorage

__all__ = [
    "DOMAIN",
    "OPS",
    "OUTPUT_NAMES",
    "QUANTIZED_TYPES",
    "VERSION",
    "Activation",
    "AttributeValue",
    "EpsilonMode",
    "ExcludedScore",
    "ExpertCombine",
    "ExpertDispatch",
    "GroupScore",
    "GroupedExperts",
    "GroupedMatMul",
    "LimitOn",
    "OpAttributes",
    "ScoreFunction",
    "TopKGating",
    "WeightFunction",
    "WeightLayout",
    "WeightOn",
    "WeightType",
    "check_input_count",
    "op_attributes",
    "require",
]

DOMAIN = "moe_export"
VERSION = 1

ScoreFunction = Literal["softmax", "sigmoid", "sqrt_softplus", "identity"]
GroupScore = Literal["max", "top2_sum"]
ExcludedScore = Literal["neg_inf", "zero"]
WeightFunction = Literal["score", "softmax", "sigmoid"]
EpsilonMode = Literal["add", "clamp"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "identity"]
LimitOn = Literal["input", "output"]
WeightOn = Literal["output", "input"]


@dataclass(frozen=True, kw_only=True)
class TopKGating(OpAttributes):
    """Attributes of ``TopKGating(logits[, selection_bias]) -> (expert_ids, expert_weights)``."""

    op_type: ClassVar[str] = "TopKGating"
    prefix: ClassVar[str] = "gating"

    top_k: int = field(metadata={"doc": "experts kept per token"})
    score_function: ScoreFunction = documented("softmax", "score of an expert from its logit")
    has_selection_bias: bool = documented(False, "a second input `selection_bias` is there")
    num_groups: int = documented(1, "contiguous blocks the experts form")
    top_groups: int = documented(1, "blocks that stay eligible")
    group_score: GroupScore = documented("max", "score of a block")
    excluded_score: ExcludedScore = documented("neg_inf", "selection score outside the kept blocks")
    weight_function: WeightFunction = documented("score", "weight of a selected expert")
    renormalize: bool = documented(False, "divide the kept weights by their sum")
    epsilon: float = documented(0.0, "guards the division")
    epsilon_mode: EpsilonMode = documented("add", "sum + epsilon, or max(sum, epsilon)")
    scale: float = documented(1.0, "factor on the weights, last")

    def check_values(self) -> None:
        """Check the values that need no tensor (gating_c2, gating_c4, gating_c5, gating_c7)."""
        require(self.top_k >= 1, "gating_c2", f"top_k must be at least 1; found {self.top_k}")
        require(
            self.num_groups >= 1,
            "gating_c4",
            f"num_groups must be at least 1; found {self.num_groups}",
        )
        require(
            1 <= self.top_groups <= self.num_groups,
            "gating_c5",
            f"top_groups must lie in [1, num_groups = {self.num_groups}]; found {self.top_groups}",
        )
        require(
            self.epsilon >= 0, "gating_c7", f"epsilon must not be negative; found {self.epsilon}"
        )

    def input_names(self) -> tuple[str, ...]:
        """``logits`` and, with ``has_selection_bias``, ``selection_bias``."""
        return ("logits", "selection_bias") if self.has_selection_bias else ("logits",)

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the inputs' shapes (gating_c1 to gating_c6).

        Args:
            shapes: Shape of every input by name; a negative or unknown size is not checked.
        """
        logits = shapes["logits"]
        require(len(logits) == 2, "gating_c1", f"logits must be [T, E]; found shape {list(logits)}")
        num_experts = logits[1]
        require(
            self.top_k <= num_experts,
            "gating_c2",
            f"top_k = {self.top_k} exceeds the {num_experts} experts of logits",
        )
        if self.has_selection_bias:
            require(
                shapes["selection_bias"] == (num_experts,),
                "gating_c3",
                f"selection_bias must be [E = {num_experts}]; "
                f"found {list(shapes['selection_bias'])}",
            )
        require(
            num_experts % self.num_groups == 0,
            "gating_c4",
            f"{num_experts} experts do not divide into num_groups = {self.num_groups}",
        )
        group_size = num_experts // self.num_groups
        require(
            self.top_groups * group_size >= self.top_k,
            "gating_c5",
            f"top_groups = {self.top_groups} of {group_size} experts hold fewer than "
            f"top_k = {self.top_k}",
        )
        require(
            self.num_groups == 1 or self.group_score == "max" or group_size >= 2,
            "gating_c6",
            f"group_score = top2_sum needs 2 experts per group; found {group_size}",
        )


@dataclass(frozen=True, kw_only=True)
class GroupedExperts(OpAttributes):
    """Attributes of ``GroupedExperts(x, expert_ids, expert_weights, up_weight, ...) -> y``."""

    op_type: ClassVar[str] = "GroupedExperts"
    prefix: ClassVar[str] = "experts"

    num_experts: int = field(metadata={"doc": "experts whose weights the node holds, E"})
    hidden_size: int = field(metadata={"doc": "width of x and y, H"})
    intermediate_size: int = field(metadata={"doc": "width inside an expert, I"})
    gated: bool = documented(True, "up_weight holds gate rows, then up rows")
    activation: Activation = documented("silu", "nonlinearity of the gate (or of up, ungated)")
    alpha: float = documented(1.0, "silu is g * sigmoid(alpha * g)")
    limit: float = documented(0.0, "clamp of gate and up; 0 for none")
    limit_on: LimitOn = documented("input", "clamp before or after the activation")
    up_offset: float = documented(0.0, "added to the up projection")
    has_bias: bool = documented(False, "inputs `up_bias` and `down_bias` are there")
    weight_on: WeightOn = documented("output", "where an expert's weight multiplies")
    first_expert: int = documented(0, "id of the first expert held here")
    weight_type: WeightType = documented("fp32", "storage of the expert weights")
    block_size: int = documented(0, "inputs per scale along K; 0 for one scale per row")
    has_zero_point: bool = documented(False, "inputs `up_zero` and `down_zero` are there")
    weight_layout: WeightLayout = documented("row_major", "`[E, N, K]`, or packed")

    def check_values(self) -> None:
        """Check the values that need no tensor (experts_c6 to experts_c9)."""
        for name in ("num_experts", "hidden_size", "intermediate_size"):
            require(getattr(self, name) >= 1, "experts_c6", f"{name} must be at least 1")
        require(
            self.first_expert >= 0,
            "experts_c6",
            f"first_expert must not be negative; found {self.first_expert}",
        )
        require(self.limit >= 0, "experts_c7", f"limit must not be negative; found {self.limit}")
        require(
            self.activation == "silu" or self.alpha == 1.0,
            "experts_c7",
            f"alpha belongs to silu; found {self.alpha} with {self.activation}",
        )
        require(
            self.gated or (self.limit == 0 and self.up_offset == 0),
            "experts_c8",
            "limit and up_offset belong to gated experts",
        )
        self.storage.check(self.matrices, "experts_c9")

    @property
    def storage(self) -> WeightStorage:
        """How ``up_weight`` and ``down_weight`` are stored."""
        return WeightStorage(
            self.weight_type, self.block_size, self.has_zero_point, self.weight_layout
        )

    @property
    def matrices(self) -> tuple[ExpertMatrix, ...]:
        """The up and the down projection."""
        up = ExpertMatrix("up_", self.up_rows, self.hidden_size, self.gated)
        return up, ExpertMatrix("down_", self.hidden_size, self.intermediate_size)

    @property
    def up_rows(self) -> int:
        """Rows of one expert's ``up_weight``: 2·I when gated, else I."""
        return self.intermediate_size * (2 if self.gated else 1)

    def input_names(self) -> tuple[str, ...]:
        """The five fixed inputs, then biases, scales and zero points as the attributes say."""
        names = ["x", "expert_ids", "expert_weights", "up_weight", "down_weight"]
        if self.has_bias:
            names += ["up_bias", "down_bias"]
        for part in self.storage.parts[1:]:
            names += [f"up_{part}", f"down_{part}"]
        return tuple(names)

    def parameter_names(self) -> tuple[str, ...]:
        """All inputs but the three that depend on the tokens."""
        return self.input_names()[3:]

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the stored inputs by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for matrix in self.matrices:
            shapes[f"{matrix.prefix}bias"] = (self.num_experts, matrix.rows)
            for part, shape in self.storage.shapes(self.num_experts, matrix).items():
                shapes[matrix.prefix + part] = shape
        return {name: shapes[name] for name in self.parameter_names()}

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the inputs' shapes (experts_c1 to experts_c5).

        Args:
            shapes: Shape of every input by name.
        """
        x, ids, weights = shapes["x"], shapes["expert_ids"], shapes["expert_weights"]
        require(
            len(x) == 2 and x[1] == self.hidden_size,
            "experts_c1",
            f"x must be [T, H = {self.hidden_size}]; found shape {list(x)}",
        )
        require(
            len(ids) == 2 and ids[0] == x[0] and ids[1] >= 1,
            "experts_c2",
            f"expert_ids must be [T = {x[0]}, K]; found shape {list(ids)}",
        )
        require(
            weights == ids,
            "experts_c3",
            f"expert_weights must have expert_ids' shape {list(ids)}; found {list(weights)}",
        )
        for name, expected in self.weight_shapes().items():
            require(
                shapes[name] == expected,
                "experts_c5" if name.endswith("bias") else "experts_c4",
                f"{name} must be {list(expected)}; found {list(shapes[name])}",
            )


OPS: tuple[type[OpAttributes], ...] = (
    TopKGating,
    GroupedExperts,
    ExpertDispatch,
    GroupedMatMul,
    ExpertCombine,
)
OUTPUT_NAMES: Mapping[str, tuple[str, ...]] = {
    "TopKGating": ("expert_ids", "expert_weights"),
    "GroupedExperts": ("y",),
    "ExpertDispatch": ("rows", "row_map", "group_ends", "row_experts"),
    "GroupedMatMul": ("y",),
    "ExpertCombine": ("y",),
}


def op_attributes(op_type: str) -> type[OpAttributes]:
    """The attribute record of ``op_type``.

    Raises:
        ContractError: the domain has no such op.
    """
    found = {op.op_type: op for op in OPS}
    require(op_type in found, "domain", f"{DOMAIN} has no op {op_type}; it has {', '.join(found)}")
    return found[op_type]


def check_input_count(attributes: OpAttributes, present: Iterable[bool]) -> None:
    """Check that a node's inputs are exactly those its attributes ask for, without gaps.

    Args:
        attributes: The node's attributes.
        present: For each input slot of the node, whether it names a tensor.
    """
    slots, names = list(present), attributes.input_names()
    require(
        len(slots) == len(names) and all(slots),
        f"{attributes.prefix}_inputs",
        f"{attributes.op_type} takes {', '.join(names)} without gaps; found {sum(slots)} of "
        f"{len(slots)} slots filled",
    )
