"""Routing in float32 and experts in half precision, on graphs made by hand."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from moe_export.lower.half_precision import cast_experts, route_in_float32, widen_boundary
from moe_export.ops.nodes import moe_nodes
from moe_export.ops.spec import DOMAIN, GroupedExperts

HALF, FLOAT, INT64 = ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.INT64
EXPERTS = GroupedExperts(num_experts=4, hidden_size=8, intermediate_size=8)


def value(name, dtype, *shape):
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def node(op_type, inputs, dtypes, attributes=None, domain=""):
    made = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=len(dtypes))
    for index, (output, dtype) in enumerate(zip(made.outputs, dtypes, strict=True)):
        output.name, output.type = f"{op_type}_{index}", ir.TensorType(dtype)
        output.shape = ir.Shape(["T", 4])
    return made


def layer(*, x=HALF, output_scores=False):
    """A router in half precision but for its softmax, before experts."""
    tokens, gate = value("x", x, "T", 8), value("gate", HALF, 8, 4)
    half_x, count = value("half_x", HALF, "T", 8), value("k", INT64, 1)
    stored = [value(n, FLOAT, *shape) for n, shape in EXPERTS.weight_shapes().items()]
    logits = node("MatMul", [half_x, gate], [HALF])
    wide = node("Cast", logits.outputs, [FLOAT], {"to": int(FLOAT)})
    scores = node("Softmax", wide.outputs, [FLOAT], {"axis": -1})
    narrow = node("Cast", scores.outputs, [HALF], {"to": int(HALF)})
    best = node("TopK", [narrow.outputs[0], count], [HALF, INT64])
    total = node("ReduceSum", best.outputs[:1], [HALF])
    share = node("Div", [best.outputs[0], total.outputs[0]], [HALF])
    weights = node("Cast", share.outputs, [FLOAT], {"to": int(FLOAT)})
    weights.outputs[0].name = "weights"
    narrow.outputs[0].name = "scores"
    given = [tokens, best.outputs[1], weights.outputs[0], *stored]
    experts = node("GroupedExperts", given, [x], EXPERTS.to_onnx(), DOMAIN)
    last = node("Identity", experts.outputs, [x])
    outputs = [last.outputs[0], *(narrow.outputs if output_scores else [])]
    nodes = [logits, wide, scores, narrow, best, total, share, weights, experts, last]
    graph = ir.Graph([tokens, half_x, gate, count, *stored], outputs, nodes=nodes, name="g")
    return ir.Model(graph, ir_version=10)


def by_type(model, op_type):
    return [n for n in model.graph if n.op_type == op_type]


def test_a_routing_is_float32_from_its_logits_on():
    model = layer()
    route_in_float32(model)
    (logits,) = by_type(model, "MatMul")
    assert logits.outputs[0].dtype == HALF
    for op_type in ("Softmax", "TopK", "ReduceSum", "Div"):
        (found,) = by_type(model, op_type)
        assert found.outputs[0].dtype == FLOAT
        assert all(v.dtype in (FLOAT, INT64) for v in found.inputs)
    assert not [c for c in by_type(model, "Cast") if c.attributes["to"].value == int(HALF)]
    model.graph.sort()  # it has no cycle


def test_others_read_a_rounded_copy():
    model = layer(output_scores=True)
    route_in_float32(model)
    scores = model.graph.outputs[1]
    assert (scores.name, scores.dtype) == ("scores", HALF)
    (best,) = by_type(model, "TopK")
    assert best.inputs[0].dtype == FLOAT
    model.graph.sort()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_experts_in_a_layer_of_float32_have_casts_around_them(dtype):
    model = layer(x=FLOAT)
    cast_experts(model, dtype)
    (experts,) = moe_nodes(model, "GroupedExperts")
    wanted = {"bf16": HALF, "fp16": ir.DataType.FLOAT16}[dtype]
    assert experts.inputs[0].dtype == experts.outputs[0].dtype == wanted
    assert experts.inputs[2].dtype == FLOAT
    (last,) = by_type(model, "Identity")
    assert last.inputs[0].dtype == FLOAT
    assert last.inputs[0].producer().inputs[0] is experts.outputs[0]
    model.graph.sort()


def test_experts_in_half_precision_stay_as_they_are():
    model = layer()
    before = [n.op_type for n in model.graph]
    cast_experts(model, "bf16")
    assert [n.op_type for n in model.graph] == before


def test_what_enters_and_leaves_is_float32_but_for_a_cache():
    model = layer()
    x, half_x = model.graph.inputs[:2]
    model.graph.outputs.append(by_type(model, "MatMul")[0].outputs[0])
    before = [v.name for v in model.graph.outputs]
    widen_boundary(model, keep=["half_x"])
    assert (x.dtype, half_x.dtype) == (FLOAT, HALF)
    assert [v.name for v in model.graph.outputs] == before
    assert [v.dtype for v in model.graph.outputs] == [FLOAT, FLOAT]
    (experts,) = moe_nodes(model, "GroupedExperts")
    assert experts.inputs[0].dtype == HALF
    assert experts.inputs[0].producer().inputs[0] is x
    model.graph.sort()
