"""What else a graph may have around and inside a router."""

from __future__ import annotations

from types import SimpleNamespace

import onnx.parser
import onnx_ir as ir
import pytest

from moe_export.lower.layers import LoweredLayer
from moe_export.ops.nodes import PATH_KEY
from moe_export.ops.spec import GroupedExperts
from moe_export.optimize.fuse_routers import COUPLED, fuse_routers
from moe_export.progress import SilentProgress

EXPERTS = GroupedExperts(
    num_experts=8, hidden_size=8, intermediate_size=2, gated=False, activation="relu"
)
TOP_TWO = """
    two = Constant <value_ints = [2]> ()
    scores = Softmax <axis = -1> (logits)
    expert_weights, expert_ids = TopK <axis = -1> (scores, two)
"""


def graph_of(router, outputs="float[T, 8] y", inputs="float[T, 8] x"):
    """A graph of a router, from ``logits`` to ``expert_ids`` and ``expert_weights``."""
    text = f"""<ir_version: 10, opset_import: ["": 20, "moe_export": 1]>
    main ({inputs}) => ({outputs})
    <float[8, 8] project = {{{", ".join("1" if i % 9 == 0 else "0" for i in range(64))}}},
     float[8, 2, 8] up = {{{", ".join(["0.5"] * 128)}}},
     float[8, 8, 2] down = {{{", ".join(["0.5"] * 128)}}}>
    {{
        logits = MatMul(x, project)
        {router}
        y = moe_export.GroupedExperts(x, expert_ids, expert_weights, up, down)
    }}"""
    proto = onnx.parser.parse_model(text)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    node = model.graph[-1]
    node.name, node.metadata_props[PATH_KEY] = "moe/GroupedExperts", "moe"
    for name, value in EXPERTS.to_onnx().items():
        node.attributes[name] = ir.convenience.convert_attribute(name, value)
    return model


def fuse(router, **around):
    model = graph_of(router, **around)
    block = SimpleNamespace(path="moe", experts=EXPERTS)
    layer = LoweredLayer(
        block, block.path, "moe/GroupedExperts", "x", "expert_ids", "expert_weights", "y"
    )
    (fused,) = fuse_routers(model, [layer], SilentProgress())
    return model, fused


def test_plain_router_is_fused():
    model, layer = fuse(TOP_TWO)
    assert layer.routing == "softmax top-2"
    names = {node.op_type: [v.name for v in node.inputs] for node in model.graph}
    assert names["TopKGating"] == ["logits"]
    assert names["GroupedExperts"][1:3] == [layer.expert_ids, layer.expert_weights]


ASCENDING = """
    eight = Constant <value_ints = [8]> ()
    first = Constant <value_ints = [6]> ()
    axis = Constant <value_ints = [1]> ()
    scores = Softmax <axis = -1> (logits)
    all_weights, all_ids = TopK <axis = -1, largest = 0> (scores, eight)
    expert_ids = Slice(all_ids, first, eight, axis)
    expert_weights = Slice(all_weights, first, eight, axis)
"""


def test_another_order_is_no_matter_where_experts_are_summed():
    assert fuse(ASCENDING)[1].routing == "softmax top-2"


def test_another_order_matters_to_an_output():
    _, layer = fuse(ASCENDING, outputs="float[T, 8] y, int64[T, 2] expert_ids")
    assert layer.gating is None
    assert "another order" in layer.routing


def test_other_readers_keep_the_operators():
    """A loss reads what the router computed; experts read the fused node."""
    model, layer = fuse(TOP_TWO, outputs="float[T, 8] y, int64[T, 2] expert_ids")
    assert layer.routing == "softmax top-2"
    assert model.graph.outputs[1].producer().op_type == "TopK"


@pytest.mark.parametrize("limit", ["2.0", "300.0", "3000.0"])
def test_a_condition_that_no_probe_met_is_not_passed_over(limit):
    """Half the score where two logits are far apart: what comes behind is fused, no more."""
    router = f"""
    two = Constant <value_ints = [2]> ()
    place = Constant <value_ints = [0]> ()
    other = Constant <value_ints = [1]> ()
    limit = Constant <value_float = {limit}> ()
    half = Constant <value_float = 0.5> ()
    a = Gather <axis = 1> (logits, place)
    b = Gather <axis = 1> (logits, other)
    high = Greater(a, limit)
    low_b = Neg(b)
    low = Greater(low_b, limit)
    odd = And(high, low)
    scores = Softmax <axis = -1> (logits)
    halved = Mul(scores, half)
    used = Where(odd, halved, scores)
    expert_weights, expert_ids = TopK <axis = -1> (used, two)
    """
    assert fuse(router)[1].routing == "top-2"


def test_ids_from_a_table_are_told():
    router = """
    two = Constant <value_ints = [2]> ()
    scores = Softmax <axis = -1> (logits)
    expert_weights = GatherElements <axis = 1> (scores, expert_ids)
    """
    _, layer = fuse(router, inputs="float[T, 8] x, int64[T, 2] expert_ids")
    assert layer.routing == "the router reads expert_ids besides its logits"


def test_noise_is_told():
    router = """
    two = Constant <value_ints = [2]> ()
    noise = RandomNormalLike(logits)
    noisy = Add(logits, noise)
    scores = Softmax <axis = -1> (noisy)
    third = Constant <value_float = 0.3> ()
    drawn = RandomNormalLike(scores)
    weighted = Mul(scores, drawn)
    best, expert_ids = TopK <axis = -1> (scores, two)
    expert_weights = GatherElements <axis = 1> (weighted, expert_ids)
    """
    assert fuse(router)[1].routing == "the router has an operator RandomNormalLike"


def test_every_expert_for_every_token_is_no_choice():
    router = """
    eight = Constant <value_ints = [8]> ()
    scores = Softmax <axis = -1> (logits)
    expert_weights, expert_ids = TopK <axis = -1> (scores, eight)
    """
    assert fuse(router)[1].routing == "every token goes to every expert"


def test_coupled_tokens_are_told():
    router = """
    two = Constant <value_ints = [2]> ()
    tokens = Constant <value_ints = [0]> ()
    load = ReduceMean(logits, tokens)
    tiny = Constant <value_float = 1e-3> ()
    loss = Mul(load, tiny)
    balanced = Sub(logits, loss)
    expert_best, expert_ids = TopK <axis = -1> (balanced, two)
    scores = Softmax <axis = -1> (logits)
    expert_weights = GatherElements <axis = 1> (scores, expert_ids)
    """
    assert fuse(router)[1].routing == COUPLED
