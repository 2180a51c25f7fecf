"""Find a router's distribution over the experts in the graph: a score for each token and expert.

Rules:

1. Ids reach the experts unchanged from where they are chosen, so that column e is expert e. An
   operator that computes with ids, looks them up in a table, or picks among the scores of all
   experts breaks the rule.
2. The scores are those of ``TopKGating``, by its score function; or the one Softmax, else the one
   Sigmoid, above ids and weights whose last axis has a column per expert and whose input depends on
   no choice, as a masked softmax does. The search ends at products: what is above them is not the
   router.
3. A softmax is a distribution as it is. Other scores are none; each token's are divided by their
   sum.

Where a rule is broken, the token's expert weights are its distribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from moe_export.ops.nodes import node_attributes
from moe_export.ops.spec import DOMAIN, TopKGating

# Operators that end the search: a router's projection, and all that is no standard operator.
_PRODUCTS = {"MatMul", "Gemm", "Einsum", "Conv"}
# Operators that read a tensor's sizes alone.
_SIZES = {"Shape", "Size"}
# Operators whose result depends on a choice between experts.
_CHOICES = {
    "TopK", "ArgMax", "ArgMin", "Where", "ScatterElements", "ScatterND", "OneHot", "NonZero",
}  # fmt: skip
# Operators that hand on the integers of their first input, some of them or in other places.
_KEEPS_IDS = {
    "Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Reshape",
    "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
_MOVES = {"Gather", "GatherElements", "GatherND"}
_CHOOSERS = {"TopK", "ArgMax"}
_STORED = {"Constant", "ConstantOfShape", "Range"}


@dataclass(frozen=True)
class ScoreBranch:
    """A value from which a router's distribution follows.

    Attributes:
        value: ``[.., C]`` float32.
        columns: C, at least the number of experts: beyond them are experts that do nothing.
        function: ``softmax``, ``sigmoid`` or ``sqrt_softplus`` to apply to ``value``; None where it
            holds scores already.
        normalize: Divide each token's scores by their sum.
        words: What the distribution is, for people.
    """

    value: ir.Value
    columns: int
    function: str | None
    normalize: bool
    words: str


def find_scores(ids: ir.Value, weights: ir.Value, num_experts: int) -> ScoreBranch | None:
    """The scores behind a layer's routing.

    Args:
        ids: ``[T, K]``, what the experts read.
        weights: ``[T, K]``, likewise.
        num_experts: E.

    Returns:
        None where a rule is broken.
    """
    if not _ids_unchanged(ids):
        return None
    gating = [n for n in _above([ids, weights]) if n.domain == DOMAIN]
    if not gating:
        return _scores_above([ids, weights], num_experts)
    attributes = node_attributes(gating[0])
    logits = gating[0].inputs[0]
    if len(gating) > 1 or not isinstance(attributes, TopKGating) or logits is None:
        return None
    return _gating_scores(attributes, logits, num_experts)


def _gating_scores(
    attributes: TopKGating, logits: ir.Value, num_experts: int
) -> ScoreBranch | None:
    """The scores of a fused router; those that it takes as they are may be made before it."""
    function: str = attributes.score_function
    if function == "identity" and attributes.weight_function != "score":
        function = attributes.weight_function
    if function == "identity":
        return _scores_above([logits], num_experts)
    columns = logits.shape[-1] if logits.shape is not None else None
    if not isinstance(columns, int) or columns < num_experts:
        return None
    return _score_branch(logits, columns, function, function, "of the router's logits")


def _scores_above(ends: list[ir.Value], num_experts: int) -> ScoreBranch | None:
    nodes = list(_above(ends))
    if any(_may_shuffle(node, num_experts) for node in nodes):
        return None
    for op_type in ("Softmax", "Sigmoid"):
        found = [
            node.outputs[0]
            for node in nodes
            if node.op_type == op_type and _is_per_expert(node, num_experts) and _is_full(node)
        ]
        if len(found) > 1:
            return None
        if found:
            kind = op_type.lower()
            return _score_branch(found[0], num_experts, None, kind, "among the router's operators")
    return None


def _score_branch(
    value: ir.Value, columns: int, function: str | None, kind: str, where: str
) -> ScoreBranch:
    """Scores of a ``kind`` (rule 3)."""
    if kind == "softmax":
        return ScoreBranch(value, columns, function, normalize=False, words=f"{kind} {where}")
    words = f"{kind} {where}, each token's over their sum"
    return ScoreBranch(value, columns, function, normalize=True, words=words)


def _above(ends: list[ir.Value]) -> Iterator[ir.Node]:
    """Nodes that ``ends`` are computed by, down from the products; custom nodes are ends too."""
    seen: set[ir.Node] = set()
    queue = list(ends)
    while queue:
        node = queue.pop(0).producer()
        if node is None or node in seen or node.op_type in _PRODUCTS | _SIZES:
            continue
        seen.add(node)
        if node.domain == DOMAIN:
            if node.op_type == TopKGating.op_type:
                yield node
            continue
        yield node
        queue += [value for value in node.inputs if value is not None]


def _may_shuffle(node: ir.Node, num_experts: int) -> bool:
    """Whether a node may put the experts' scores in another order."""
    value = node.outputs[0]
    if node.op_type not in _MOVES or value.dtype != ir.DataType.FLOAT:
        return False
    return value.shape is None or num_experts in value.shape


def _has_columns(node: ir.Node, num_experts: int) -> bool:
    """Whether the last axis of a node's float result is the experts', beyond doubt."""
    value = node.outputs[0]
    if value.shape is None or value.dtype != ir.DataType.FLOAT or len(value.shape) < 2:
        return False
    *others, columns = value.shape
    return bool(columns == num_experts and num_experts not in others)


def _is_per_expert(node: ir.Node, num_experts: int) -> bool:
    """Whether scores are the experts' of a token: a softmax over tokens is not."""
    shape, axis = node.outputs[0].shape, node.attributes.get_int("axis", -1)
    last = shape is not None and axis in (-1, len(shape) - 1)
    return _has_columns(node, num_experts) and (last or node.op_type != "Softmax")


def _is_full(node: ir.Node) -> bool:
    """Whether no choice between experts is behind the scores: a float operator that makes one."""
    floats = [v for v in node.inputs if v is not None and v.dtype == ir.DataType.FLOAT]
    return not any(above.op_type in _CHOICES for above in _above(floats))


def _ids_unchanged(ids: ir.Value) -> bool:
    """Rule 1: from a choice to the experts, ids are only moved, masked and cast."""
    queue, seen = [(ids, False)], set()
    while queue:
        value, picked = queue.pop()
        node = value.producer()
        if value.is_initializer() or (node is not None and node.op_type in _STORED):
            if picked:  # a table; taken as they stand, stored integers are ids
                return False
            continue
        if node is None:
            return False
        if (node, picked) in seen or node.op_type in _CHOOSERS | {TopKGating.op_type}:
            continue
        seen.add((node, picked))
        if node.op_type == "Where":
            sources = node.inputs[1:]
        elif node.op_type in _KEEPS_IDS:
            sources = node.inputs if node.op_type == "Concat" else node.inputs[:1]
            picked = picked or node.op_type in ("Gather", "GatherElements")
        else:
            return False
        queue += [(source, picked) for source in sources if source is not None]
    return True
