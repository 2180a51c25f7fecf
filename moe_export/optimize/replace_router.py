"""Put a ``TopKGating`` node in the place of a router's operators."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import onnx_ir as ir

from moe_export.lower.gating_words import describe_gating
from moe_export.lower.layers import LoweredLayer, expert_ends
from moe_export.ops.nodes import PATH_KEY, moe_nodes
from moe_export.ops.spec import DOMAIN, TopKGating
from moe_export.optimize.observation import RoutingPair


@dataclass(frozen=True)
class FoundRouter:
    """A router that the op explains.

    Attributes:
        logits: The value that it starts at, ``[..., E]``.
        pair: The values that it ends at.
        attributes: Of the op.
        bias: Name of the selection bias.
        num_experts: E.
    """

    logits: ir.Value
    pair: RoutingPair
    attributes: TopKGating
    bias: str | None
    num_experts: int


def replace_router(model: ir.Model, layer: LoweredLayer, found: FoundRouter) -> LoweredLayer:
    """Compute what ``found`` ends at by one node; operators that nothing reads any more stay.

    Returns:
        The layer, with its router's attributes and the names of its routing now.
    """
    graph = model.graph
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    nodes: list[ir.Node] = []
    inputs = [_reshape(found.logits, [-1, found.num_experts], nodes)]
    if found.bias is not None:
        inputs.append(_reshape(values[found.bias], [found.num_experts], nodes))
    gating = _gating_node(found, inputs, layer.path)
    nodes.append(gating)
    first, last = expert_ends(layer.path, layer_nodes(model, layer.path))
    if found.pair.ids == layer.expert_ids:
        first.replace_input_with(1, gating.outputs[0])
    if found.pair.weights == layer.expert_weights:
        last.replace_input_with(2, gating.outputs[1])
    if not found.pair.own:
        for name, value in zip((found.pair.ids, found.pair.weights), gating.outputs, strict=True):
            _feed_rest(values[name], value, found.pair.after, nodes)
    # In front of everything: sorting moves them behind what they read.
    graph.insert_before(graph[0], nodes)
    graph.sort()
    ids, weights = first.inputs[1], last.inputs[2]
    assert ids is not None  # inputs of the contract
    assert weights is not None
    return dataclasses.replace(
        layer,
        gating=found.attributes,
        routing=describe_gating(found.attributes),
        expert_ids=str(ids.name),
        expert_weights=str(weights.name),
    )


def _feed_rest(old: ir.Value, value: ir.Value, after: frozenset[str], nodes: list[ir.Node]) -> None:
    """Let the rest of the router read ``value`` for ``old``; others go on reading ``old``."""
    new: ir.Value | None = None
    for user, index in list(old.uses()):
        if any(output.name in after for output in user.outputs):
            new = _like(value, old, nodes) if new is None else new
            user.replace_input_with(index, new)


def _gating_node(found: FoundRouter, inputs: list[ir.Value], path: str) -> ir.Node:
    node = ir.node(
        TopKGating.op_type,
        inputs,
        found.attributes.to_onnx(),
        domain=DOMAIN,
        num_outputs=2,
        name=f"{path or 'root'}/{TopKGating.op_type}",
        metadata_props={PATH_KEY: path},
    )
    rows = inputs[0].shape
    shape = ir.Shape([rows[0] if rows is not None else None, found.attributes.top_k])
    kinds = {"expert_ids": ir.DataType.INT32, "expert_weights": ir.DataType.FLOAT}
    for value, (name, dtype) in zip(node.outputs, kinds.items(), strict=True):
        value.name, value.shape = f"{path or 'root'}/{name}", shape
        value.type = ir.TensorType(dtype)
    return node


def _reshape(value: ir.Value, sizes: list[int], nodes: list[ir.Node]) -> ir.Value:
    """``value`` in as many axes as ``sizes``, through a Reshape if it has others."""
    if value.shape is not None and len(value.shape) == len(sizes):
        return value
    shape = ir.node("Constant", [], {"value_ints": sizes})
    node = ir.node("Reshape", [value, shape.outputs[0]])
    shape.outputs[0].name, node.outputs[0].name = f"{value.name}/rows", f"{value.name}/reshaped"
    node.outputs[0].type = value.type
    node.outputs[0].shape = ir.Shape([None if size < 0 else size for size in sizes])
    nodes += [shape, node]
    return node.outputs[0]


def _like(value: ir.Value, old: ir.Value, nodes: list[ir.Node]) -> ir.Value:
    """``value`` in the type and the number of axes of ``old``."""
    if old.dtype is not None and old.dtype != value.dtype:
        node = ir.node("Cast", [value], {"to": old.dtype})
        node.outputs[0].name, node.outputs[0].shape = f"{value.name}/cast", value.shape
        node.outputs[0].type = old.type
        nodes.append(node)
        value = node.outputs[0]
    if old.shape is not None and len(old.shape) == 1:
        return _reshape(value, [-1], nodes)
    return value


def layer_nodes(model: ir.Model, path: str) -> list[ir.Node]:
    """The custom nodes of the layer at ``path``."""
    return [node for node in moe_nodes(model) if node.metadata_props[PATH_KEY] == path]
