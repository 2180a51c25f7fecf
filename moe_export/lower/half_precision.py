"""Types of a graph in half precision: routing in float32, experts in the type of the activations.

Rules:

1. From a router's last product to ids and weights all is float32: models round an expert's weight
   to half precision on the way, which only loses digits, and ``TopKGating`` computes in float32.
2. Experts multiply activations and weights of one type. A layer around them that is computed in
   float32 has casts at its experts.
3. What enters and leaves the graph is float32, as in the example that a bundle brings, and NumPy
   has no bfloat16; but for a cache, which stays on the GPU from one step to the next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import onnx_ir as ir

from moe_export.ops.nodes import moe_nodes
from moe_export.ops.spec import DOMAIN
from moe_export.plan import DType

_FLOAT = ir.DataType.FLOAT
HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
IR_DTYPES: dict[DType, ir.DataType] = {
    "fp32": _FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}
# Where routing begins, the products that make logits, and what is no operation on values.
_BEGINNINGS = {"MatMul", "Gemm", "Einsum", "Conv", "Constant", "ConstantOfShape"}
# Inputs that a routing ends in, by operator.
_ENDS = {"GroupedExperts": (1, 2), "ExpertDispatch": (1,), "ExpertCombine": (2,)}
_MOST_NODES = 200


def route_in_float32(model: ir.Model) -> None:
    """Compute every routing in float32 (rule 1); a longer one than routers have stays as it is."""
    for node in list(moe_nodes(model)):
        ends = [node.inputs[i] for i in _ENDS.get(node.op_type, ())]
        routing = _routing_nodes([end for end in ends if end is not None])
        if len(routing) <= _MOST_NODES:
            order = [n for n in model.graph if n in routing]
            _widen(model.graph, order)


def _routing_nodes(ends: Sequence[ir.Value]) -> set[ir.Node]:
    """The nodes between the last products and ``ends``."""
    found: set[ir.Node] = set()
    queue = list(ends)
    while queue and len(found) <= _MOST_NODES:
        node = queue.pop().producer()
        if node is None or node in found or node.domain == DOMAIN or node.op_type in _BEGINNINGS:
            continue
        found.add(node)
        queue += [value for value in node.inputs if value is not None]
    return found


def _widen(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    """Give nodes, in the order they run, float32 instead of half precision."""
    inside = set(nodes)
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in HALF:
                node.replace_input_with(index, cast_before(node, value, _FLOAT))
        narrow = [value for value in node.outputs if value.dtype in HALF]
        if not narrow:
            continue
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", int(_FLOAT))
        for value in narrow:
            _widen_value(graph, node, value, inside)


def _widen_value(graph: ir.Graph, node: ir.Node, value: ir.Value, inside: set[ir.Node]) -> None:
    """Make a value float32, with a cast for those who read it in half precision elsewhere."""
    assert value.dtype is not None  # it is one of HALF
    narrow = value.dtype
    value.type = ir.TensorType(_FLOAT)
    others = [(n, i) for n, i in value.uses() if n not in inside and n.domain != DOMAIN]
    if not others and not value.is_graph_output():
        return
    cast = _cast(value, narrow)
    graph.insert_after(node, cast)
    for user, index in others:
        user.replace_input_with(index, cast.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is value:
            name, value.name = value.name, f"{value.name}_float32"
            cast.outputs[0].name = name
            graph.outputs[index] = cast.outputs[0]


def cast_experts(model: ir.Model, dtype: DType) -> None:
    """Give every node that holds experts' weights activations in ``dtype`` (rule 2)."""
    wanted = IR_DTYPES[dtype]
    for node in list(_products(model)):
        x, y = node.inputs[0], node.outputs[0]
        assert x is not None  # the contract has no gaps
        if x.dtype in (wanted, None):
            continue
        wide = x.dtype
        node.replace_input_with(0, cast_before(node, x, wanted))
        y.type = ir.TensorType(wanted)
        users = list(y.uses())
        cast = _cast(y, wide)
        model.graph.insert_after(node, cast)
        for user, index in users:
            user.replace_input_with(index, cast.outputs[0])


def widen_boundary(model: ir.Model, keep: Collection[str]) -> None:
    """Make inputs and outputs in half precision float32 (rule 3), but for those in ``keep``."""
    graph = model.graph
    for value in graph.inputs:
        if value.dtype not in HALF or value.name in keep:
            continue
        uses, cast = list(value.uses()), _cast(value, value.dtype)
        value.type = ir.TensorType(_FLOAT)
        graph.insert_before(graph[0], cast)
        for user, index in uses:
            user.replace_input_with(index, cast.outputs[0])
    for index, value in enumerate(graph.outputs):
        if value.dtype not in HALF or value.name in keep:
            continue
        name, value.name = value.name, f"{value.name}_{value.dtype.name.lower()}"
        cast = _cast(value, _FLOAT)
        cast.outputs[0].name = name
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]


def _products(model: ir.Model) -> Iterator[ir.Node]:
    yield from moe_nodes(model, "GroupedExperts")
    yield from moe_nodes(model, "GroupedMatMul")


def cast_before(node: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """``value`` in ``dtype``: what it was cast from, if that has this type, or a new cast."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Cast" and dtype in HALF:
        source = producer.inputs[0]
        if source is not None and source.dtype == dtype:
            return source
    cast = _cast(value, dtype)
    assert node.graph is not None  # it is a node of the model
    node.graph.insert_before(node, cast)
    return cast.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": int(dtype)})
    cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(dtype), value.shape
    return cast
