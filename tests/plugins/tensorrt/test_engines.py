"""TensorRT-RTX's own parser and builder take the plugins, and refuse wrong nodes for our reasons.

There is no inspector of an engine without a driver: that a plugin is in one is seen in the parsed
network, and in the engine's bytes, where its op and attributes are serialized.
"""

from __future__ import annotations

import pytest

from tests.plugins.tensorrt.op_graphs import NODE, combine, dispatch, experts, gating, matmul

ELEMENTS = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}


def build(engine_builder, graph, capability="SM80"):
    """Build an engine; the outputs' shapes and types."""
    names = [graph.op_type, NODE, *graph.attributes]
    answer = engine_builder.build(graph.model(), graph.profile(), capability, names)
    assert answer["parsed"] and answer["built"], answer
    assert answer["seen"] == names
    (plugin,) = answer["plugins"]
    assert plugin["name"] == NODE
    return plugin["outputs"]


@pytest.mark.parametrize("element", ELEMENTS)
def test_gating(engine_builder, element):
    ids, weights = build(engine_builder, gating(element))
    assert (ids, weights) == ([[-1, 4], "INT32"], [[-1, 4], "FLOAT"])


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("ids", ["int32", "int64"])
def test_grouped_experts(engine_builder, element, ids):
    outputs = build(engine_builder, experts(element, ids))
    assert outputs == [[[-1, 96], ELEMENTS[element]]]


@pytest.mark.parametrize(
    "stored",
    [
        {"weight_type": "int8"},
        {"weight_type": "fp8"},
        {"weight_type": "int4", "block_size": 32},
        {"weight_type": "int4", "block_size": 64, "has_zero_point": True},
        {"weight_type": "int4", "block_size": 128},
    ],
)
def test_weights_of_fewer_bytes(engine_builder, stored):
    build(engine_builder, experts("bf16", **stored))
    build(engine_builder, matmul("fp16", **stored))


@pytest.mark.parametrize("capability", ["SM86", "SM89", "SM120"])
def test_grouped_experts_for_other_gpus(engine_builder, capability):
    build(engine_builder, experts("bf16", gated=False, activation="relu2"), capability)


@pytest.mark.parametrize("element", ELEMENTS)
def test_row_ops(engine_builder, element):
    kind = ELEMENTS[element]
    rows, row_map, ends, row_experts = build(engine_builder, dispatch(element))
    assert rows == [[-1, 96], kind]
    assert (row_map, ends, row_experts) == ([[-1, 2], "INT32"], [[4], "INT32"], [[-1], "INT32"])
    assert build(engine_builder, matmul(element)) == [[[-1, 40], kind]]
    assert build(engine_builder, combine(element)) == [[[-1, 96], kind]]


def expect_refusal(engine_builder, graph, reason, *, parsed=False):
    """The engine is refused, while it is parsed unless ``parsed``, and for ``reason``."""
    answer = engine_builder.build(graph.model(), graph.profile())
    assert (answer["parsed"], answer["built"]) == (parsed, False), answer
    assert answer["reason"].startswith(f"moe_export: {reason}"), answer["reason"]
    assert answer["reason"].endswith(f"({NODE})")


@pytest.mark.parametrize(
    ("graph", "changes", "reason"),
    [
        (gating, {"score_function": "hardmax"}, "gating_attributes: score_function must be one of"),
        (gating, {"top_k": 0}, "gating_c2: top_k must be at least 1; found 0"),
        (gating, {"top_k": 17}, "gating_c2: top_k = 17 exceeds the 16 experts of logits"),
        (gating, {"num_groups": 3}, "gating_c4: 16 experts do not divide into num_groups = 3"),
        (gating, {"epsilon": -1.0}, "gating_c7: epsilon must not be negative"),
        (gating, {"has_selection_bias": 0}, "gating_inputs: the node takes logits without gaps"),
        (experts, {"activation": 3}, "experts_attributes: the node needs attribute activation of"),
        (experts, {"alpha": 1}, "experts_attributes: the node needs attribute alpha of type float"),
        (experts, {"gated": 2}, "experts_attributes: gated must be 0 or 1; found 2"),
        (experts, {"limit": -1.0}, "experts_c7: limit must not be negative"),
        (experts, {"block_size": 16}, "experts_c9: block_size must be 32, 64 or 128 for int4"),
        (experts, {"weight_layout": "row_major"}, "experts_c4: this library computes weight_layou"),
        (experts, {"weight_layout": "cuda_v2"}, "experts_attributes: weight_layout must be one of"),
        (experts, {"weight_type": "mxfp4", "block_size": 32}, "experts_c9: mxfp4 needs multiples"),
        (experts, {"weight_type": "bf16"}, "experts_c4: this library does not compute weight_type"),
        (dispatch, {"num_experts": -3}, "dispatch_c3: num_experts must be at least 1; found -3"),
        (
            matmul,
            {"in_features": 64},
            "matmul_c1: rows must be [M, in_features = 64]; found [?, 96",
        ),
        (matmul, {"weight_type": "int4"}, "matmul_c6: block_size must be 32, 64 or 128 for int4"),
        (combine, {"hidden_size": 32}, "combine_c1: rows must be [M, N = 32]; found [?, 96]"),
    ],
)
def test_wrong_attributes_are_named(engine_builder, graph, changes, reason):
    wrong = graph()
    wrong.attributes |= changes
    expect_refusal(engine_builder, wrong, reason)


@pytest.mark.parametrize("graph", [gating, experts, dispatch, matmul, combine])
def test_misspelled_attributes_are_missed(engine_builder, graph):
    wrong = graph()
    name = next(iter(wrong.attributes))
    wrong.attributes[f"{name}s"] = wrong.attributes.pop(name)
    reason = f"{graph.__name__}_attributes: the node needs attribute {name} of type int (it has no"
    expect_refusal(engine_builder, wrong, reason)


@pytest.mark.parametrize(
    ("graph", "name", "changed", "reason"),
    [
        (gating, "logits", ("int32", ["T", 16]), "gating_inputs: logits must be float32, float16 "),
        (gating, "logits", ("fp16", ["T", 4, 16]), "gating_c1: logits must be [T, E]; found [?, 4"),
        (gating, "selection_bias", ("fp32", [8]), "gating_c3: selection_bias must be [E = 16]; fo"),
        (gating, "selection_bias", ("fp16", [16]), "gating_inputs: selection_bias must be float32"),
        (experts, "x", ("fp16", ["T", 64]), "experts_c1: x must be [T, H = 96]; found [?, 64]"),
        (experts, "x", ("fp16", [96]), "experts_c1: x must be [T, H = 96]; found [96]"),
        (experts, "x", ("fp32", ["T", 96]), "experts_c4: this library does not compute weight_typ"),
        (experts, "expert_ids", ("fp32", ["T", 2]), "experts_inputs: expert_ids must be int32 or"),
        (experts, "expert_ids", ("int32", ["T"]), "experts_c2: expert_ids must be [T, K]; found ["),
        (experts, "expert_weights", ("fp16", ["T", 2]), "experts_inputs: expert_weights must be f"),
        (experts, "expert_weights", ("fp32", ["T", 3]), "experts_c3: expert_weights must have exp"),
        (experts, "up_bias", ("fp32", [4, 48]), "experts_c5: up_bias must be [4, 96]; found [4, 4"),
        (dispatch, "x", ("fp16", ["T", 95]), "dispatch_c1: x must be [T, H = 96]; found [?, 95]"),
        (matmul, "group_ends", ("int64", [4]), "matmul_inputs: group_ends must be int32; found in"),
        (matmul, "group_ends", ("int32", [5]), "matmul_c3: group_ends must be [E = 4]; found [5]"),
        (matmul, "bias", ("fp32", [40]), "matmul_c4: bias must be [4, 40]; found [40]"),
        (combine, "row_map", ("int64", ["T", 2]), "combine_inputs: row_map must be int32; found i"),
        (combine, "expert_weights", ("fp16", ["T", 2]), "combine_inputs: expert_weights must be f"),
    ],
)
def test_wrong_tensors_are_named(engine_builder, graph, name, changed, reason):
    wrong = graph()
    wrong.inputs[name] = changed
    expect_refusal(engine_builder, wrong, reason)


def test_wrong_packed_sizes_are_named(engine_builder):
    wrong = experts()
    wrong.weights["down_weight"][1] += 128
    reason = "experts_c4: down_weight must be [4, 12288]; found [4, 12416]"
    expect_refusal(engine_builder, wrong, reason, parsed=True)


def test_too_many_inputs_are_refused(engine_builder):
    wrong = combine()
    wrong.inputs["more"] = ("fp32", [1])
    reason = "combine_inputs: the node takes rows, row_map, expert_weights without gaps; found 4"
    expect_refusal(engine_builder, wrong, reason)
