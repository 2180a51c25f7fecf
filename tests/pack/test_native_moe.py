"""TensorRT's own MoE layer holds the same numbers in its own order; what it lacks is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from moe_export.errors import UnsupportedModelError
from moe_export.ops import reference
from moe_export.ops.nodes import PATH_KEY
from moe_export.ops.spec import DOMAIN, GroupedExperts, TopKGating
from moe_export.ops.spec_rows import GroupedMatMul
from moe_export.pack.native_moe import native_nodes, native_weights, use_native_moe
from tests.engine.trt_moe import trt_moe

T, E, H, I, K = 7, 4, 6, 10, 2  # noqa: E741 - the contract's letters
TYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def experts(weight_type="fp16", **changes):
    given = {"num_experts": E, "hidden_size": H, "intermediate_size": I, "weight_type": weight_type}
    return GroupedExperts(**(given | changes))


def stored(name, array):
    tensor = ir.tensor(array, name=name)
    kind, shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
    return ir.Value(name=name, type=kind, shape=shape, const_value=tensor)


def draw(attributes, seed=0):
    """Stored inputs of a node by name."""
    random = np.random.default_rng(seed)
    found = {}
    for name, shape in attributes.weight_shapes().items():
        values = random.standard_normal(shape, np.float32)
        if name.endswith("weight"):
            values = (values * 20).astype(TYPES.get(attributes.weight_type, np.int8))
        found[name] = values
    return found


def layer(attributes, *, num_logits=E, routed=True, calls=1):
    """A graph with a router and its experts, which later calls share, and what it stores."""
    kind = ir.tensor(np.zeros(1, TYPES.get(attributes.weight_type, np.float16))).dtype
    x = ir.Value(name="x", type=ir.TensorType(kind), shape=ir.Shape(["T", H]))
    logits = ir.Value(
        name="logits", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["T", num_logits])
    )
    inputs, nodes = [x, logits], []
    if routed:
        attrs = TopKGating(top_k=K).to_onnx()
        route = ir.node("TopKGating", [logits], attrs, domain=DOMAIN, num_outputs=2)
        route.outputs[0].name, route.outputs[1].name = "ids", "weights"
        routing, nodes = list(route.outputs), [route]
    else:
        routing = [ir.Value(name="ids"), ir.Value(name="weights")]
        inputs += routing
    for value, dtype in zip(routing, (ir.DataType.INT32, ir.DataType.FLOAT), strict=True):
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(["T", K])
    arrays = draw(attributes)
    weights = [stored(name, array) for name, array in arrays.items()]
    for call in range(calls):
        node = ir.node(
            attributes.op_type, [x, *routing, *weights], attributes.to_onnx(), domain=DOMAIN
        )
        node.name = f"mlp/{attributes.op_type}{call or ''}"
        node.metadata_props[PATH_KEY] = "mlp"
        x = node.outputs[0]
        x.name, x.type, x.shape = f"y{call}", ir.TensorType(kind), ir.Shape(["T", H])
        nodes.append(node)
    graph = ir.Graph(
        inputs,
        [x],
        nodes=nodes,
        initializers=weights,
        opset_imports={"": 20, DOMAIN: 1},
        name="layer",
    )
    return ir.Model(graph, ir_version=10), arrays


def written(model, path):
    """The model as its file has it."""
    ir.save(model, path, external_data="data", size_threshold_bytes=0)
    return ir.load(path)


@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("weight_type", TYPES)
def test_the_written_node_means_what_the_contract_says(tmp_path, weight_type, has_bias):
    attributes = experts(weight_type, has_bias=has_bias)
    model, arrays = layer(attributes)
    (node,) = native_nodes(written(use_native_moe(model), tmp_path / "model.onnx"))
    assert node.attributes["activation_type"].value == 1
    gate, up, down, *biases = (value.const_value.numpy() for value in node.inputs[3:])
    assert gate.shape == up.shape == (E, H, I)
    assert down.shape == (E, I, H)
    assert {a.dtype for a in (gate, up, down, *biases)} == {np.dtype(TYPES[weight_type])}

    random = np.random.default_rng(1)
    x = random.standard_normal((T, H)).astype(TYPES[weight_type])
    ids = np.stack([random.permutation(E)[:K] for _ in range(T)]).astype(np.int32)
    scores = random.random((T, K), np.float32).astype(TYPES[weight_type])
    found = trt_moe(x[None], ids[None], scores[None], gate, up, down, *biases)[0]

    for name in ("up_bias", "down_bias"):
        if has_bias:
            arrays[name] = arrays[name].astype(TYPES[weight_type]).astype(np.float32)
    wide = {n: a.astype(np.float32) for n, a in arrays.items()}
    expected = reference.grouped_experts(
        x.astype(np.float64),
        ids,
        scores.astype(np.float64),
        attributes=experts("fp32", has_bias=has_bias),
        **wide,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_routing_and_the_names_around_a_layer_stay(tmp_path):
    model, _ = layer(experts())
    native = written(use_native_moe(model), tmp_path / "model.onnx")
    (node,) = native_nodes(native)
    assert node.name == "mlp/TRT_MoE"
    assert node.metadata_props[PATH_KEY] == "mlp"
    assert [value.name for value in native.graph.outputs] == ["y0"]
    assert native.graph.outputs[0].dtype == ir.DataType.FLOAT16
    assert [list(value.shape) for value in node.inputs[:3]] == [
        [1, ir.SymbolicDim("T"), width] for width in (H, K, K)
    ]
    assert [value.dtype for value in node.inputs[:3]] == [
        ir.DataType.FLOAT16, ir.DataType.INT32, ir.DataType.FLOAT16,
    ]  # fmt: skip
    assert [n.op_type for n in native.graph].count("TopKGating") == 1
    assert not any(name.endswith("_weight") for name in native.graph.initializers)
    assert [n.op_type for n in model.graph] == ["TopKGating", "GroupedExperts"]


def test_calls_that_share_weights_go_on_sharing_them():
    native = use_native_moe(layer(experts(), calls=2)[0])
    first, second = native_nodes(native)
    assert first.inputs[3:] == second.inputs[3:]
    assert len(native.graph.initializers) == 4
    assert sum(weight.nbytes for weight in native_weights(first)) == 3 * E * H * I * 2


ROWS = GroupedMatMul(num_experts=E, in_features=H, out_features=H, weight_type="fp16")


@pytest.mark.parametrize(
    ("attributes", "options", "said"),
    [
        (experts(activation="gelu"), {}, "experts gated by silu; these are gelu, gated"),
        (experts(gated=False), {}, "experts gated by silu; these are silu, ungated"),
        (
            experts(alpha=1.5, limit=7.0, up_offset=1.0),
            {},
            "SwiGLU are not supported yet: alpha = 1.5, limit = 7, up_offset = 1",
        ),
        (experts(weight_on="input"), {}, "expert weights multiply what enters the experts"),
        (experts("int8"), {}, "weights are int8, activations float16: they differ"),
        (experts(first_expert=4), {"num_logits": 8}, "it holds experts 4 to 7 of 8"),
        (experts(), {"num_logits": 8}, "out of range is not documented.*experts 0 to 3 of 8"),
        (experts(), {"routed": False}, "the layer's ids are not those of a TopKGating"),
    ],
)
def test_what_the_layer_is_not_documented_to_compute_is_refused(attributes, options, said):
    model, _ = layer(attributes, **options)
    with pytest.raises(UnsupportedModelError, match=f"(?s)--moe plugin takes them.*mlp: .*{said}"):
        use_native_moe(model)


def test_experts_that_are_no_ffn_are_refused():
    model, _ = layer(experts())
    weight = stored("matrix", draw(ROWS)["weight"])
    ends = ir.Value(name="ends", type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape([E]))
    inputs = [model.graph.inputs[0], weight, ends]
    node = ir.node(
        "GroupedMatMul", inputs, ROWS.to_onnx(), domain=DOMAIN, name="rows/GroupedMatMul"
    )
    node.metadata_props[PATH_KEY] = "rows"
    model.graph.inputs.append(ends)
    model.graph.register_initializer(weight)
    model.graph.append(node)
    with pytest.raises(UnsupportedModelError, match="rows: its experts are no gated FFN"):
        use_native_moe(model)


def test_a_bias_that_half_precision_does_not_hold_is_refused():
    model, arrays = layer(experts(has_bias=True))
    arrays["down_bias"][0, 0] = 1e5
    with pytest.raises(UnsupportedModelError, match="down_bias is not finite in float16"):
        use_native_moe(model)
