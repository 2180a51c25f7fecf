"""The op contract: every labeled constraint, strict attributes, and its documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from moe_export.errors import ContractError
from moe_export.ops import spec
from moe_export.ops.spec import (
    ExpertCombine,
    ExpertDispatch,
    GroupedExperts,
    GroupedMatMul,
    TopKGating,
)

ROOT = Path(__file__).resolve().parents[2]
LABEL = r"\b(?:gating|experts|dispatch|matmul|combine)_(?:c\d+|inputs|attributes)\b"
SPEC = [
    ROOT / "moe_export" / "ops" / name
    for name in ("record.py", "spec.py", "spec_rows.py", "storage.py")
]

SIZES = {"num_experts": 4, "hidden_size": 8, "intermediate_size": 6}
GATING = TopKGating(top_k=2)
EXPERTS = GroupedExperts(**SIZES)
DISPATCH = ExpertDispatch(num_experts=4, hidden_size=8)
MATMUL_SIZES = {"num_experts": 4, "in_features": 8, "out_features": 6}
MATMUL = GroupedMatMul(**MATMUL_SIZES)
COMBINE = ExpertCombine(hidden_size=8)
EVERY_OP = (GATING, EXPERTS, DISPATCH, MATMUL, COMBINE)
EXPERTS_SHAPES = {
    "x": (5, 8),
    "expert_ids": (5, 2),
    "expert_weights": (5, 2),
    "up_weight": (4, 12, 8),
    "down_weight": (4, 8, 6),
    "up_bias": (4, 12),
    "down_bias": (4, 8),
}


def refusal(call, *args, **kwargs):
    with pytest.raises(ContractError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("label", "values", "name"),
    [
        ("gating_c2", {"top_k": 0}, "top_k"),
        ("gating_c4", {"num_groups": 0}, "num_groups"),
        ("gating_c5", {"top_groups": 0}, "top_groups"),
        ("gating_c5", {"num_groups": 2, "top_groups": 3}, "top_groups"),
        ("gating_c7", {"epsilon": -1e-6}, "epsilon"),
        ("gating_attributes", {"score_function": "softmaxx"}, "score_function"),
        ("gating_attributes", {"epsilon": float("inf")}, "epsilon"),
        ("gating_attributes", {"scale": float("nan")}, "scale"),
        ("gating_attributes", {"scale": 1}, "scale"),
        ("gating_attributes", {"top_k": 2.0}, "top_k"),
        ("gating_attributes", {"top_k": True}, "top_k"),
        ("gating_attributes", {"renormalize": 1}, "renormalize"),
    ],
)
def test_gating_values_are_refused_by_label_and_name(label, values, name):
    message = refusal(TopKGating, **{"top_k": 2, **values})
    assert message.startswith(f"{label}: ")
    assert name in message


@pytest.mark.parametrize(
    ("label", "values", "name"),
    [
        ("experts_c6", {"num_experts": 0}, "num_experts"),
        ("experts_c6", {"hidden_size": 0}, "hidden_size"),
        ("experts_c6", {"intermediate_size": -1}, "intermediate_size"),
        ("experts_c6", {"first_expert": -1}, "first_expert"),
        ("experts_c7", {"limit": -1.0}, "limit"),
        ("experts_c7", {"activation": "relu", "alpha": 1.702}, "alpha"),
        ("experts_c8", {"gated": False, "limit": 7.0}, "limit"),
        ("experts_c8", {"gated": False, "up_offset": 1.0}, "up_offset"),
        ("experts_c9", {"block_size": 32}, "block_size"),
        ("experts_c9", {"has_zero_point": True}, "zero points"),
        ("experts_c9", {"weight_type": "int8", "block_size": -1}, "block_size"),
        ("experts_c9", {"weight_type": "int8", "block_size": 32}, "block_size of int8"),
        ("experts_c9", {"weight_type": "int4", "block_size": 0}, "block_size of int4"),
        ("experts_c9", {"weight_type": "int4", "block_size": 48}, "block_size of int4"),
        ("experts_c9", {"weight_type": "mxfp4", "block_size": 64}, "block_size of mxfp4"),
        ("experts_c9", {"weight_type": "int8", "has_zero_point": True}, "zero points"),
        ("experts_c9", {"weight_type": "mxfp4", "block_size": 32}, "multiples of 32 columns"),
        ("experts_attributes", {"activation": "swish"}, "activation"),
        ("experts_attributes", {"alpha": float("nan")}, "alpha"),
        ("experts_attributes", {"up_offset": float("-inf")}, "up_offset"),
        ("experts_attributes", {"limit": 7}, "limit"),
        ("experts_attributes", {"hidden_size": "8"}, "hidden_size"),
        ("experts_attributes", {"gated": 1}, "gated"),
    ],
)
def test_experts_values_are_refused_by_label_and_name(label, values, name):
    message = refusal(GroupedExperts, **{**SIZES, **values})
    assert message.startswith(f"{label}: ")
    assert name in message


@pytest.mark.parametrize(
    ("op", "label", "values", "name"),
    [
        (DISPATCH, "dispatch_c3", {"num_experts": 0}, "num_experts"),
        (DISPATCH, "dispatch_c3", {"hidden_size": -1}, "hidden_size"),
        (DISPATCH, "dispatch_c3", {"first_expert": -1}, "first_expert"),
        (DISPATCH, "dispatch_attributes", {"hidden_size": 8.0}, "hidden_size"),
        (MATMUL, "matmul_c5", {"num_experts": 0}, "num_experts"),
        (MATMUL, "matmul_c5", {"in_features": 0}, "in_features"),
        (MATMUL, "matmul_c5", {"out_features": -3}, "out_features"),
        (MATMUL, "matmul_c6", {"block_size": 32}, "block_size"),
        (MATMUL, "matmul_c6", {"has_zero_point": True}, "zero points"),
        (MATMUL, "matmul_c6", {"weight_type": "int8", "block_size": -1}, "block_size"),
        (MATMUL, "matmul_c6", {"weight_type": "int4", "block_size": 16}, "block_size of int4"),
        (MATMUL, "matmul_c6", {"weight_type": "mxfp4", "block_size": 32}, "multiples of 32"),
        (MATMUL, "matmul_attributes", {"weight_type": "float32"}, "weight_type"),
        (MATMUL, "matmul_attributes", {"has_bias": 1}, "has_bias"),
        (COMBINE, "combine_c5", {"hidden_size": 0}, "hidden_size"),
        (COMBINE, "combine_attributes", {"hidden_size": "8"}, "hidden_size"),
    ],
)
def test_row_ops_values_are_refused_by_label_and_name(op, label, values, name):
    message = refusal(type(op), **{**vars(op), **values})
    assert message.startswith(f"{label}: ")
    assert name in message


@pytest.mark.parametrize(
    ("label", "values", "shapes", "name"),
    [
        ("gating_c1", {}, {"logits": (4,)}, "logits"),
        ("gating_c1", {}, {"logits": (2, 3, 4)}, "logits"),
        ("gating_c2", {"top_k": 5}, {"logits": (3, 4)}, "top_k"),
        (
            "gating_c3",
            {"has_selection_bias": True},
            {"logits": (3, 4), "selection_bias": (3,)},
            "selection_bias",
        ),
        (
            "gating_c3",
            {"has_selection_bias": True},
            {"logits": (3, 4), "selection_bias": (1, 4)},
            "selection_bias",
        ),
        ("gating_c4", {"num_groups": 3}, {"logits": (3, 4)}, "num_groups"),
        ("gating_c5", {"num_groups": 4}, {"logits": (3, 4)}, "top_groups"),
        (
            "gating_c6",
            {"num_groups": 4, "top_groups": 2, "group_score": "top2_sum"},
            {"logits": (3, 4)},
            "group_score",
        ),
    ],
)
def test_gating_shapes_are_refused_by_label_and_name(label, values, shapes, name):
    message = refusal(TopKGating(**{"top_k": 2, **values}).check_shapes, shapes)
    assert message.startswith(f"{label}: ")
    assert name in message


@pytest.mark.parametrize(
    ("label", "name", "shape"),
    [
        ("experts_c1", "x", (5, 7)),
        ("experts_c1", "x", (8,)),
        ("experts_c2", "expert_ids", (4, 2)),
        ("experts_c2", "expert_ids", (5, 0)),
        ("experts_c2", "expert_ids", (10,)),
        ("experts_c3", "expert_weights", (5, 1)),
        ("experts_c4", "up_weight", (4, 6, 8)),
        ("experts_c4", "up_weight", (4, 8, 12)),
        ("experts_c4", "down_weight", (3, 8, 6)),
        ("experts_c5", "up_bias", (4, 6)),
        ("experts_c5", "down_bias", (8,)),
    ],
)
def test_experts_shapes_are_refused_by_label_and_name(label, name, shape):
    attributes = GroupedExperts(**SIZES, has_bias=True)
    message = refusal(attributes.check_shapes, {**EXPERTS_SHAPES, name: shape})
    assert message.startswith(f"{label}: {name} ")


ROW_SHAPES = {
    "ExpertDispatch": {"x": (5, 8), "expert_ids": (5, 2)},
    "GroupedMatMul": {"rows": (9, 8), "weight": (4, 6, 8), "group_ends": (4,), "bias": (4, 6)},
    "ExpertCombine": {"rows": (9, 8), "row_map": (5, 2), "expert_weights": (5, 2)},
}


@pytest.mark.parametrize(
    ("op", "label", "name", "shape"),
    [
        (DISPATCH, "dispatch_c1", "x", (5, 7)),
        (DISPATCH, "dispatch_c1", "x", (5, 8, 1)),
        (DISPATCH, "dispatch_c2", "expert_ids", (4, 2)),
        (DISPATCH, "dispatch_c2", "expert_ids", (5, 0)),
        (DISPATCH, "dispatch_c2", "expert_ids", (5,)),
        (MATMUL, "matmul_c1", "rows", (9, 6)),
        (MATMUL, "matmul_c1", "rows", (8,)),
        (MATMUL, "matmul_c2", "weight", (4, 8, 6)),
        (MATMUL, "matmul_c2", "weight", (3, 6, 8)),
        (MATMUL, "matmul_c3", "group_ends", (5,)),
        (MATMUL, "matmul_c3", "group_ends", (4, 1)),
        (MATMUL, "matmul_c4", "bias", (6,)),
        (COMBINE, "combine_c1", "rows", (9, 6)),
        (COMBINE, "combine_c2", "row_map", (10,)),
        (COMBINE, "combine_c2", "row_map", (5, 0)),
        (COMBINE, "combine_c3", "expert_weights", (5, 3)),
    ],
)
def test_row_ops_shapes_are_refused_by_label_and_name(op, label, name, shape):
    if op is MATMUL:
        op = GroupedMatMul(**MATMUL_SIZES, has_bias=True)
    shapes = ROW_SHAPES[op.op_type]
    op.check_shapes(shapes)
    message = refusal(op.check_shapes, {**shapes, name: shape})
    assert message.startswith(f"{label}: {name} ")


def test_dispatch_c4_refuses_more_rows_than_int32_counts():
    DISPATCH.check_row_count(2**31 - 1)
    assert refusal(DISPATCH.check_row_count, 2**31).startswith("dispatch_c4: expert_ids ")


@pytest.mark.parametrize("ends", [[0, 2, 1, 3], [-1, 0, 0, 0], [1, 2, 3, 10]])
def test_matmul_c7_refuses_ends_that_do_not_ascend_within_the_rows(ends):
    MATMUL.check_group_ends([0, 2, 2, 9], 9)
    assert refusal(MATMUL.check_group_ends, ends, 9).startswith("matmul_c7: group_ends ")


@pytest.mark.parametrize("bounds", [(-2, 0), (0, 9), (-1, 10)])
def test_combine_c4_refuses_rows_that_do_not_exist(bounds):
    COMBINE.check_row_map(-1, 8, 9)
    assert refusal(COMBINE.check_row_map, *bounds, 9).startswith("combine_c4: row_map ")


def test_right_shapes_are_accepted():
    GroupedExperts(**SIZES, has_bias=True).check_shapes(EXPERTS_SHAPES)
    TopKGating(
        top_k=4, num_groups=4, top_groups=2, group_score="top2_sum", has_selection_bias=True
    ).check_shapes({"logits": (0, 8), "selection_bias": (8,)})


@pytest.mark.parametrize(
    ("attributes", "present"),
    [
        (GATING, []),
        (GATING, [True, True]),
        (TopKGating(top_k=2, has_selection_bias=True), [True]),
        (TopKGating(top_k=2, has_selection_bias=True), [False, True]),
        (EXPERTS, [True] * 4),
        (EXPERTS, [True] * 7),
        (EXPERTS, [True, False, True, True, True]),
        (GroupedExperts(**SIZES, has_bias=True), [True] * 5),
    ],
)
def test_inputs_with_gaps_or_wrong_count_are_refused(attributes, present):
    message = refusal(spec.check_input_count, attributes, present)
    assert message.startswith(f"{attributes.prefix}_inputs: ")
    assert ", ".join(attributes.input_names()) in message


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"weight_type": "int8", "weight_layout": "cpu_v1"}, ()),
        ({}, ()),
        ({"has_bias": True}, ("bias",)),
        ({"weight_type": "int8"}, ("scale",)),
        (
            {"weight_type": "int4", "block_size": 32, "has_zero_point": True, "has_bias": True},
            ("bias", "scale", "zero"),
        ),
    ],
)
def test_attributes_decide_the_optional_inputs_of_a_product(values, names):
    attributes = GroupedMatMul(**MATMUL_SIZES, **values)
    assert attributes.input_names() == ("rows", "weight", "group_ends", *names)
    assert attributes.parameter_names() == ("weight", *names)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"has_bias": True}, ("up_bias", "down_bias")),
        ({"weight_type": "int8"}, ("up_scale", "down_scale")),
        ({"weight_type": "int8", "weight_layout": "cpu_v1"}, ()),
        (
            {"weight_type": "int4", "block_size": 32, "has_zero_point": True, "has_bias": True},
            ("up_bias", "down_bias", "up_scale", "down_scale", "up_zero", "down_zero"),
        ),
    ],
)
def test_attributes_decide_the_optional_inputs(values, names):
    attributes = GroupedExperts(**SIZES, **values)
    assert attributes.input_names()[5:] == names
    spec.check_input_count(attributes, [True] * (5 + len(names)))


@pytest.mark.parametrize(
    "attributes",
    [
        GATING,
        TopKGating(
            top_k=8,
            score_function="sigmoid",
            has_selection_bias=True,
            num_groups=8,
            top_groups=4,
            group_score="top2_sum",
            excluded_score="zero",
            weight_function="softmax",
            renormalize=True,
            epsilon=1e-20,
            epsilon_mode="clamp",
            scale=2.5,
        ),
        EXPERTS,
        GroupedExperts(
            **SIZES,
            activation="silu",
            alpha=1.702,
            limit=7.0,
            limit_on="output",
            up_offset=1.0,
            has_bias=True,
            weight_on="input",
            first_expert=16,
            weight_type="int4",
            block_size=32,
            has_zero_point=True,
            weight_layout="cpu_v1",
        ),
        GroupedExperts(**SIZES, gated=False, activation="relu2"),
        ExpertDispatch(num_experts=4, hidden_size=8, first_expert=16),
        MATMUL,
        GroupedMatMul(
            **MATMUL_SIZES,
            has_bias=True,
            weight_type="int4",
            block_size=128,
            has_zero_point=True,
            weight_layout="cuda_v1",
        ),
        COMBINE,
    ],
)
def test_onnx_attributes_round_trip(attributes):
    written = attributes.to_onnx()
    assert not any(isinstance(value, bool) for value in written.values())
    assert type(attributes).from_onnx(written) == attributes


@pytest.mark.parametrize(
    ("attributes", "name"), [(op, name) for op in EVERY_OP for name in op.to_onnx()]
)
def test_each_missing_attribute_is_named(attributes, name):
    written = attributes.to_onnx()
    del written[name]
    message = refusal(type(attributes).from_onnx, written)
    assert message.startswith(f"{attributes.prefix}_attributes: ")
    assert message.endswith(f"needs attribute {name}")


@pytest.mark.parametrize("attributes", EVERY_OP)
@pytest.mark.parametrize("name", ["swiglu_limit", "Top_k", ""])
def test_unknown_attribute_is_named(attributes, name):
    message = refusal(type(attributes).from_onnx, {**attributes.to_onnx(), name: 1})
    assert message.startswith(f"{attributes.prefix}_attributes: ")
    assert message.endswith(f"has no attribute {name}")


@pytest.mark.parametrize(
    ("misspelled", "right"), [("renormalise", "renormalize"), ("topk", "top_k")]
)
def test_misspelled_attribute_is_named(misspelled, right):
    written = GATING.to_onnx()
    written[misspelled] = written.pop(right)
    assert misspelled in refusal(TopKGating.from_onnx, written)


@pytest.mark.parametrize(
    ("attributes", "name", "value"),
    [
        (GATING, "top_k", 2.0),
        (GATING, "top_k", "2"),
        (GATING, "renormalize", 2),
        (GATING, "renormalize", "true"),
        (GATING, "scale", 1),
        (GATING, "score_function", 0),
        (EXPERTS, "gated", -1),
        (EXPERTS, "alpha", "1"),
        (EXPERTS, "hidden_size", 8.0),
        (EXPERTS, "weight_type", "float32"),
    ],
)
def test_wrong_typed_onnx_attribute_is_named(attributes, name, value):
    message = refusal(type(attributes).from_onnx, {**attributes.to_onnx(), name: value})
    assert message.startswith(f"{attributes.prefix}_attributes: {name} must be ")


def test_unknown_op_lists_the_known_ones():
    message = refusal(spec.op_attributes, "MoE")
    assert "MoE" in message
    assert all(op.op_type in message for op in spec.OPS)


def readme_labels():
    return set(re.findall(LABEL, (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")))


def code_labels(paths):
    return {label for path in paths for label in re.findall(LABEL, path.read_text("utf-8"))}


def test_every_documented_label_is_checked_somewhere():
    sources = [
        path
        for folder in ("cpu", "onnxruntime", "spec")
        for path in (ROOT / "plugins" / folder).rglob("*")
        if path.suffix in (".h", ".cc", ".cpp")
    ]
    assert sources
    prefixed = {f"{op.prefix}_{kind}" for op in spec.OPS for kind in ("inputs", "attributes")}
    found = code_labels([*SPEC, *sources])
    assert readme_labels() - prefixed <= found


def test_every_label_in_the_code_is_documented():
    found = code_labels(SPEC)
    assert len(found) >= 32
    assert found <= readme_labels()


def test_generated_files_are_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_contract.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_gating_attributes_float_is_no_bool():
    values = TopKGating(top_k=1).to_onnx() | {"renormalize": 1.0}
    with pytest.raises(ContractError, match="gating_attributes: renormalize must be 0 or 1"):
        TopKGating.from_onnx(values)
