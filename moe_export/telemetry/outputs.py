"""Give a graph outputs that tell how its MoE layers spread their tokens.

The nodes read what the experts read, stand after all others and are standard operators: nothing
else in the graph changes, and every target computes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.ops.nodes import PATH_KEY, moe_nodes, node_attributes
from moe_export.ops.spec import ExpertDispatch, GroupedExperts
from moe_export.telemetry.branch import Branch
from moe_export.telemetry.probability import ScoreBranch, find_scores
from moe_export.telemetry.record import CHOICES, TOKENS, LayerTelemetry

# ReduceMin takes its axes as an input from here on.
_MIN_OPSET = 18
# Keeps a token without any score from becoming NaN; the smallest normal float32.
_TINY = np.finfo(np.float32).tiny
_KINDS = ("tokens_per_expert", "mean_probability", "dropped_tokens")
_OF_WEIGHTS = "each token's expert weights over their sum: its router scores no others"


def add_telemetry(model: ir.Model) -> tuple[LayerTelemetry, ...]:
    """Append three outputs for each call of an MoE layer.

    Args:
        model: Lowered; changed in place.

    Returns:
        The new outputs, layer by layer in the graph's order.

    Raises:
        UsageError: the model has an input or output of such a name.
        UnsupportedModelError: the graph has no MoE layer, or is of an opset below 18.
    """
    opset = model.opset_imports.get("", 0)
    if opset < _MIN_OPSET:
        raise UnsupportedModelError(f"telemetry needs opset {_MIN_OPSET}; the graph has {opset}")
    layers: dict[str, list[ir.Node]] = {}
    for node in moe_nodes(model):
        layers.setdefault(node.metadata_props[PATH_KEY], []).append(node)
    if not layers:
        raise UnsupportedModelError("the graph has no MoE layer to count tokens of")
    return tuple(_add_layer(model.graph, path, nodes) for path, nodes in layers.items())


def extend_file(path: Path) -> tuple[bytes, tuple[LayerTelemetry, ...]]:
    """The model of a file with telemetry; its external data stays where it is.

    Raises:
        UsageError: as ``add_telemetry``.
        UnsupportedModelError: likewise.
    """
    model = ir.load(path)
    records = add_telemetry(model)
    graph: bytes = ir.to_proto(model).SerializeToString()
    return graph, records


def output_names(path: str) -> tuple[str, str, str]:
    """The outputs of the layer at ``path``: its path, a dot, and what they hold."""
    first, second, third = (f"{path}.{kind}" if path else kind for kind in _KINDS)
    return first, second, third


def _add_layer(graph: ir.Graph, path: str, nodes: Sequence[ir.Node]) -> LayerTelemetry:
    first = next(n for n in nodes if n.op_type in ("GroupedExperts", "ExpertDispatch"))
    last = next(n for n in nodes if n.op_type in ("GroupedExperts", "ExpertCombine"))
    attributes = node_attributes(first)
    assert isinstance(attributes, GroupedExperts | ExpertDispatch)  # chosen above
    ids, weights = first.inputs[1], last.inputs[2]
    assert ids is not None  # inputs of the contract
    assert weights is not None
    num_experts, names = attributes.num_experts, output_names(path)
    _free_names(graph, names)

    branch = Branch(graph, f"{path or 'root'}/telemetry")
    slots = _slots(branch, ids, num_experts, attributes.first_expert)
    counts = _count(branch, slots, num_experts)
    dropped, meaning = _dropped(branch, ids, slots, counts, num_experts)
    scores = find_scores(ids, weights, num_experts) if attributes.first_expert == 0 else None
    if scores is None:
        mean = _mean_weights(branch, slots, weights, num_experts)
    else:
        mean = _mean_scores(branch, scores, num_experts)
    kinds = (ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.INT64)
    shapes = (ir.Shape([num_experts]), ir.Shape([num_experts]), ir.Shape([]))
    values = (branch.cut(counts, num_experts), mean, dropped)
    for value, name, kind, shape in zip(values, names, kinds, shapes, strict=True):
        value.name, value.type, value.shape = name, ir.TensorType(kind), shape
        graph.outputs.append(value)
    return LayerTelemetry(path, *names, scores.words if scores else _OF_WEIGHTS, meaning)


def _slots(branch: Branch, ids: ir.Value, num_experts: int, first_expert: int) -> ir.Value:
    """``[T, K]`` int64: the expert's place in [0, E), or E where the id is out of range."""
    local = branch.add("Cast", [ids], to=ir.DataType.INT64)
    if first_expert:
        local = branch.add("Sub", [local, branch.constant(np.int64(first_expert))])
    end = branch.constant(np.int64(num_experts))
    above = branch.add("GreaterOrEqual", [local, branch.constant(np.int64(0))])
    inside = branch.add("And", [above, branch.add("Less", [local, end])])
    return branch.add("Where", [inside, local, end])


def _count(branch: Branch, slots: ir.Value, num_experts: int) -> ir.Value:
    """``[E + 1]`` int64: how many slots hold each expert's place, then how many hold E."""
    ones = branch.add(
        "Expand",
        [branch.constant(np.int64(1)), branch.flatten(branch.add("Size", [slots]))],
    )
    zeros = branch.zeros(num_experts + 1, np.int64)
    inputs = [zeros, branch.flatten(slots), ones]
    return branch.add("ScatterElements", inputs, axis=0, reduction="add")


def _dropped(
    branch: Branch, ids: ir.Value, slots: ir.Value, counts: ir.Value, num_experts: int
) -> tuple[ir.Value, str]:
    """An int64 scalar, and what it counts."""
    end = branch.constant(np.int64(num_experts))
    if ids.shape is None or ids.shape[1] != num_experts:
        return branch.add("Gather", [counts, end]), CHOICES
    # With a place for every expert, a token's lowest one is E where all are empty.
    lowest = branch.add("ReduceMin", [slots, branch.ints(1)], keepdims=0)
    untaken = branch.add("Cast", [branch.add("Equal", [lowest, end])], to=ir.DataType.INT64)
    return branch.add("ReduceSum", [untaken], keepdims=0), TOKENS


def _mean_scores(branch: Branch, scores: ScoreBranch, num_experts: int) -> ir.Value:
    """``[E]``: mean over the rows of the scores' distribution."""
    rows = branch.add("Reshape", [scores.value, branch.ints(-1, scores.columns)])
    rows = _apply(branch, scores.function, rows)
    if scores.normalize:
        rows = _over_sum(branch, rows)
    total = branch.add("ReduceSum", [rows, branch.ints(0)], keepdims=0)
    mean = branch.add("Div", [total, branch.count_rows(rows)])
    return branch.cut(mean, num_experts)


def _apply(branch: Branch, function: str | None, rows: ir.Value) -> ir.Value:
    """A score function of the contract; None leaves the rows as they are."""
    if function == "softmax":
        return branch.add("Softmax", [rows], axis=-1)
    if function == "sqrt_softplus":
        return branch.add("Sqrt", [branch.add("Softplus", [rows])])
    if function == "sigmoid":  # spelled out: ONNX Runtime cuts its own off below -18
        exponential = branch.add("Exp", [branch.add("Neg", [rows])])
        one = branch.constant(np.float32(1))
        return branch.add("Reciprocal", [branch.add("Add", [exponential, one])])
    return rows


def _mean_weights(branch: Branch, slots: ir.Value, weights: ir.Value, num_experts: int) -> ir.Value:
    """``[E]``: mean over the tokens of their weights' magnitudes, each token's over their sum."""
    inside = branch.add("Less", [slots, branch.constant(np.int64(num_experts))])
    sizes = branch.add("Abs", [weights])
    used = branch.add("Where", [inside, sizes, branch.constant(np.float32(0))])
    shares = branch.flatten(_over_sum(branch, used))
    zeros = branch.zeros(num_experts + 1, np.float32)
    inputs = [zeros, branch.flatten(slots), shares]
    total = branch.add("ScatterElements", inputs, axis=0, reduction="add")
    mean = branch.add("Div", [total, branch.count_rows(slots)])
    return branch.cut(mean, num_experts)


def _over_sum(branch: Branch, rows: ir.Value) -> ir.Value:
    """Each row over its sum; a row of zeros stays one."""
    total = branch.add("ReduceSum", [rows, branch.ints(-1)], keepdims=1)
    return branch.add("Div", [rows, branch.add("Max", [total, branch.constant(_TINY)])])


def _free_names(graph: ir.Graph, names: Sequence[str]) -> None:
    """Rename values inside the graph that have one of ``names``, such as a buffer of the layer.

    Raises:
        UsageError: an input or output has one.
    """
    for value in (*graph.inputs, *graph.outputs):
        if value.name in names:
            raise UsageError(
                f"telemetry names an output {value.name}, and the model has an input or output of "
                "that name: rename it, or leave telemetry out"
            )
    inner = [value for node in graph for value in node.outputs]
    for value in [*inner, *graph.initializers.values()]:
        if value.name in names:
            value.name = f"{value.name}/own"
