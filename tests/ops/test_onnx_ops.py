"""The ops in ONNX: one node per call with the contract's attributes, and what the check refuses."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from torch import nn

from moe_export.errors import ContractError
from moe_export.ops import spec
from moe_export.ops.contract import check_model
from moe_export.ops.layout import SourceLayout
from moe_export.ops.nodes import PATH_KEY, moe_nodes, node_attributes
from moe_export.ops.onnx_ops import node_layout, translation_table
from moe_export.ops.portable import OPSET
from moe_export.ops.spec import (
    ExpertCombine,
    ExpertDispatch,
    GroupedExperts,
    GroupedMatMul,
    TopKGating,
)
from moe_export.ops.torch_ops import (
    expert_combine,
    expert_dispatch,
    grouped_experts,
    grouped_matmul,
    top_k_gating,
)

GATING = TopKGating(
    top_k=2, score_function="sigmoid", has_selection_bias=True, renormalize=True, epsilon=0.5
)
EXPERTS = GroupedExperts(
    num_experts=4, hidden_size=10, intermediate_size=6, has_bias=True, up_offset=1.0, limit=7.0
)
LAYOUT = SourceLayout(transposed=True, interleaved=True)
DISPATCH = ExpertDispatch(num_experts=4, hidden_size=10, first_expert=1)
MATMUL = GroupedMatMul(num_experts=4, in_features=10, out_features=10, has_bias=True)
COMBINE = ExpertCombine(hidden_size=10)
NODES = {op.op_type: op for op in (GATING, EXPERTS, DISPATCH, MATMUL, COMBINE)}


class TinyMoe(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Parameter(torch.randn(4, 10))
        self.selection_bias = nn.Parameter(torch.randn(4))
        self.up_weight = nn.Parameter(torch.randn(4, 10, 12))
        self.down_weight = nn.Parameter(torch.randn(4, 6, 10))
        self.up_bias = nn.Parameter(torch.randn(4, 12))
        self.down_bias = nn.Parameter(torch.randn(4, 10))
        self.weight = nn.Parameter(torch.randn(4, 10, 10))

    def forward(self, x):
        ids, weights = top_k_gating(x @ self.router.T, GATING, self.selection_bias, path="moe.gate")
        stored = [self.up_weight, self.down_weight, self.up_bias, self.down_bias]
        y = grouped_experts([x, ids, weights, *stored], EXPERTS, LAYOUT, path="moe")
        rows, row_map, ends, experts = expert_dispatch(x, ids, DISPATCH, path="rows")
        rows = rows * self.selection_bias.index_select(0, experts).unsqueeze(1)
        rows = grouped_matmul(rows, self.weight, ends, MATMUL, self.down_bias, path="rows")
        return y + expert_combine(rows, row_map, weights, COMBINE, path="rows")


@pytest.fixture(scope="module")
def exported():
    tokens = torch.export.Dim("tokens")
    program = torch.onnx.export(
        TinyMoe().eval(),
        (torch.randn(5, 10),),
        dynamic_shapes=({0: tokens},),
        custom_translation_table=translation_table(),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    return program.model


def test_each_call_becomes_one_node(exported):
    assert [node.op_type for node in moe_nodes(exported)] == list(NODES)
    assert exported.opset_imports[spec.DOMAIN] == spec.VERSION
    assert not any(function.domain == spec.DOMAIN for function in exported.functions.values())


@pytest.mark.parametrize("op_type", NODES)
def test_node_has_exactly_the_attributes_of_the_contract(exported, op_type):
    (node,) = moe_nodes(exported, op_type)
    written = {name: attribute.value for name, attribute in node.attributes.items()}
    assert written == NODES[op_type].to_onnx()
    assert node_attributes(node) == NODES[op_type]
    kinds = {name: attribute.type for name, attribute in node.attributes.items()}
    names = {int: ir.AttributeType.INT, float: ir.AttributeType.FLOAT, str: ir.AttributeType.STRING}
    assert kinds == {name: names[type(value)] for name, value in written.items()}


@pytest.mark.parametrize("op_type", NODES)
def test_node_has_exactly_the_inputs_of_the_contract(exported, op_type):
    (node,) = moe_nodes(exported, op_type)
    assert len(node.inputs) == len(NODES[op_type].input_names())
    assert all(value is not None for value in node.inputs)


def test_node_carries_path_and_layout_until_lowering(exported):
    found = [(node.metadata_props[PATH_KEY], node_layout(node)) for node in moe_nodes(exported)]
    plain = SourceLayout()
    assert found == [("moe.gate", plain), ("moe", LAYOUT), *[("rows", plain)] * 3]


def test_number_of_tokens_stays_dynamic(exported):
    for node in moe_nodes(exported):
        for value in node.outputs:
            is_vector_of_experts = value.shape == (4,)
            assert is_vector_of_experts or isinstance(value.shape[0], ir.SymbolicDim)


def test_outputs_have_the_types_of_the_contract(exported):
    (dispatch,) = moe_nodes(exported, "ExpertDispatch")
    kinds = [ir.DataType.FLOAT, *[ir.DataType.INT32] * 3]
    assert [value.dtype for value in dispatch.outputs] == kinds


def make_value(name, dtype, shape):
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def make_model(attributes, **changes):
    """A model of one right node called ``moe/node``; ``changes`` replace its inputs by name."""
    tokens = "tokens"
    shapes = {
        "logits": [tokens, 4],
        "selection_bias": [4],
        "x": [tokens, 10],
        "expert_ids": [tokens, 2],
        "expert_weights": [tokens, 2],
        "rows": ["rows", 10],
        "row_map": [tokens, 2],
        "group_ends": [4],
        **EXPERTS.weight_shapes(),
        **MATMUL.weight_shapes(),
    }
    values = {}
    for name in attributes.input_names():
        integer = name in ("expert_ids", "row_map", "group_ends")
        kind = ir.DataType.INT32 if integer else ir.DataType.FLOAT
        values[name] = make_value(name, kind, shapes[name])
    values |= changes
    node = ir.node(
        attributes.op_type,
        list(values.values()),
        attributes=attributes.to_onnx(),
        domain=spec.DOMAIN,
        num_outputs=len(spec.OUTPUT_NAMES[attributes.op_type]),
        name="moe/node",
    )
    inputs = [value for value in values.values() if value is not None]
    graph = ir.Graph(inputs, node.outputs, nodes=[node], name="one_node")
    return ir.Model(graph, ir_version=10), node


def refusal(model):
    with pytest.raises(ContractError) as caught:
        check_model(model)
    message = str(caught.value)
    assert "(node moe/node)" in message
    return message


@pytest.mark.parametrize("attributes", NODES.values(), ids=NODES)
def test_right_node_is_accepted(attributes):
    check_model(make_model(attributes)[0])


@pytest.mark.parametrize("attributes", [EXPERTS, DISPATCH])
def test_int64_ids_are_accepted(attributes):
    ids = make_value("i", ir.DataType.INT64, ["tokens", 2])
    check_model(make_model(attributes, expert_ids=ids)[0])


@pytest.mark.parametrize(("attributes", "name"), [(MATMUL, "group_ends"), (COMBINE, "row_map")])
def test_int64_rows_are_refused(attributes, name):
    model, node = make_model(attributes)
    node.inputs[attributes.input_names().index(name)].type = ir.TensorType(ir.DataType.INT64)
    assert refusal(model).startswith(f"{attributes.prefix}_inputs: {name} must be int32; found")


@pytest.mark.parametrize("attributes", NODES.values(), ids=NODES)
def test_unknown_shape_is_left_to_the_runtime(attributes):
    first = attributes.input_names()[0]
    value = ir.Value(name=first, type=ir.TensorType(ir.DataType.FLOAT))
    check_model(make_model(attributes, **{first: value})[0])


@pytest.mark.parametrize(
    ("attributes", "name"), [(op, name) for op in NODES.values() for name in op.to_onnx()]
)
def test_missing_attribute_is_refused(attributes, name):
    model, node = make_model(attributes)
    del node.attributes[name]
    assert refusal(model).startswith(
        f"{attributes.prefix}_attributes: {attributes.op_type} needs attribute {name} "
    )


@pytest.mark.parametrize("attributes", NODES.values(), ids=NODES)
def test_unknown_attribute_is_refused(attributes):
    model, node = make_model(attributes)
    node.attributes["swiglu_limit"] = ir.AttrFloat32("swiglu_limit", 7.0)
    assert refusal(model).startswith(
        f"{attributes.prefix}_attributes: {attributes.op_type} has no attribute swiglu_limit "
    )


@pytest.mark.parametrize("attributes", NODES.values(), ids=NODES)
def test_attribute_of_wrong_type_is_refused(attributes):
    name = next(iter(attributes.to_onnx()))
    model, node = make_model(attributes)
    node.attributes[name] = ir.AttrFloat32(name, 2.0)
    assert refusal(model).startswith(f"{attributes.prefix}_attributes: {name} must be int")


@pytest.mark.parametrize(
    ("attributes", "name"), [(op, name) for op in NODES.values() for name in op.input_names()]
)
def test_empty_input_is_refused(attributes, name):
    message = refusal(make_model(attributes, **{name: None})[0])
    assert message.startswith(f"{attributes.prefix}_inputs: ")
    assert name in message


@pytest.mark.parametrize(
    ("attributes", "name"), [(op, name) for op in NODES.values() for name in op.input_names()]
)
@pytest.mark.parametrize("dtype", [ir.DataType.DOUBLE, ir.DataType.UINT8, ir.DataType.INT8])
def test_wrong_dtype_is_refused(attributes, name, dtype):
    model, node = make_model(attributes)
    node.inputs[attributes.input_names().index(name)].type = ir.TensorType(dtype)
    message = refusal(model)
    assert message.startswith(f"{attributes.prefix}_inputs: {name} must be ")
    assert dtype.name in message


@pytest.mark.parametrize(
    ("attributes", "name"), [(op, name) for op in NODES.values() for name in op.input_names()]
)
def test_only_activations_may_be_half_precision(attributes, name):
    model, node = make_model(attributes)
    node.inputs[attributes.input_names().index(name)].type = ir.TensorType(ir.DataType.FLOAT16)
    if name in ("logits", "x", "rows"):
        check_model(model)
    else:
        assert refusal(model).startswith(f"{attributes.prefix}_inputs: {name} must be ")


@pytest.mark.parametrize(
    ("attributes", "name", "shape", "label"),
    [
        (GATING, "logits", ["tokens", 4, 1], "gating_c1"),
        (GATING, "selection_bias", [3], "gating_c3"),
        (EXPERTS, "x", ["tokens", 9], "experts_c1"),
        (EXPERTS, "expert_ids", ["tokens"], "experts_c2"),
        (EXPERTS, "expert_weights", ["tokens", 3], "experts_c3"),
        (EXPERTS, "up_weight", [4, 6, 10], "experts_c4"),
        (EXPERTS, "down_weight", [4, 6, 10], "experts_c4"),
        (EXPERTS, "up_bias", [12], "experts_c5"),
        (EXPERTS, "down_bias", [4, 12], "experts_c5"),
        (DISPATCH, "x", ["tokens", 9], "dispatch_c1"),
        (DISPATCH, "expert_ids", ["tokens", 2, 1], "dispatch_c2"),
        (MATMUL, "rows", ["rows", 9], "matmul_c1"),
        (MATMUL, "weight", [4, 9, 10], "matmul_c2"),
        (MATMUL, "group_ends", [3], "matmul_c3"),
        (MATMUL, "bias", [10], "matmul_c4"),
        (COMBINE, "rows", ["rows", 9], "combine_c1"),
        (COMBINE, "row_map", ["tokens"], "combine_c2"),
        (COMBINE, "expert_weights", ["tokens", 3], "combine_c3"),
    ],
)
def test_wrong_shape_is_refused(attributes, name, shape, label):
    model, node = make_model(attributes)
    node.inputs[attributes.input_names().index(name)].shape = ir.Shape(shape)
    assert refusal(model).startswith(f"{label}: {name} must ")


def test_unknown_op_of_the_domain_is_refused():
    model, node = make_model(GATING)
    node.op_type = "MoE"
    assert "no op MoE" in refusal(model)


def test_nodes_of_other_domains_are_not_judged():
    model, node = make_model(GATING)
    node.domain = "com.example"
    node.attributes.clear()
    check_model(model)


@pytest.mark.parametrize("num_groups", [1, 3])
def test_symbolic_sizes_are_left_to_the_runtime(num_groups):
    """No size is made up for a symbol: whether its value fits, the runtime will see."""
    attributes = TopKGating(top_k=2, num_groups=num_groups, top_groups=min(2, num_groups))
    value = make_value("logits", ir.DataType.FLOAT, ["t", "e"])
    check_model(make_model(attributes, logits=value)[0])
