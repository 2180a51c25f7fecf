"""``ExpertDispatch``, ``GroupedMatMul`` and ``ExpertCombine`` of the ONNX Runtime library."""

from __future__ import annotations

import numpy as np
import pytest

from moe_export.ops import reference_rows
from moe_export.ops.spec import ExpertCombine, ExpertDispatch, GroupedMatMul
from moe_export.tolerances import LAYER_TOLERANCE
from tests.plugins.one_node import run_node

DISPATCH = ExpertDispatch(num_experts=4, hidden_size=20, first_expert=3)
MATMUL = GroupedMatMul(num_experts=4, in_features=20, out_features=12)
COMBINE = ExpertCombine(hidden_size=12)
OPS = {op.op_type: op for op in (DISPATCH, MATMUL, COMBINE)}


def make_inputs(rng, op_type, num_tokens=13, top_k=3, has_bias=False):
    """The op's inputs by name; a third of the ids are out of range."""

    def draw(*shape):
        return rng.standard_normal(shape, np.float32)

    num_rows = num_tokens * top_k
    if op_type == "ExpertDispatch":
        ids = rng.integers(2, 8, (num_tokens, top_k)).astype(np.int32)
        return {"x": draw(num_tokens, 20), "expert_ids": ids}
    if op_type == "ExpertCombine":
        row_map = rng.integers(-1, num_rows, (num_tokens, top_k)).astype(np.int32)
        weights = draw(num_tokens, top_k)
        return {"rows": draw(num_rows, 12), "row_map": row_map, "expert_weights": weights}
    ends = np.sort(rng.integers(0, num_rows + 1, 4)).astype(np.int32)
    inputs = {"rows": draw(num_rows, 20), "weight": draw(4, 12, 20), "group_ends": ends}
    return inputs | ({"bias": draw(4, 12)} if has_bias else {})


def run_reference(op, inputs):
    if isinstance(op, ExpertDispatch):
        return reference_rows.expert_dispatch(**inputs, attributes=op)
    multiplies = isinstance(op, GroupedMatMul)
    run = reference_rows.grouped_matmul if multiplies else reference_rows.expert_combine
    return (run(**inputs, attributes=op),)


def check(op, inputs, **options):
    outputs = run_node(op.op_type, op.to_onnx(), inputs, **options)
    for found, expected in zip(outputs, run_reference(op, inputs), strict=True):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        scale = np.abs(expected).max(initial=1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=LAYER_TOLERANCE * scale)
    return outputs


@pytest.mark.parametrize("op_type", OPS)
@pytest.mark.parametrize(("num_tokens", "top_k"), [(0, 2), (1, 9), (200, 1), (40, 4)])
def test_token_counts(rng, op_type, num_tokens, top_k):
    check(OPS[op_type], make_inputs(rng, op_type, num_tokens, top_k))


def test_dispatch_takes_int64_ids(rng):
    inputs = make_inputs(rng, "ExpertDispatch")
    inputs["expert_ids"] = inputs["expert_ids"].astype(np.int64)
    inputs["expert_ids"][1] = [2**32 + 3, -(2**63), 2**63 - 1]
    _, row_map, *_ = check(DISPATCH, inputs)
    assert row_map[1].tolist() == [-1] * 3


def test_bias(rng):
    op = GroupedMatMul(num_experts=4, in_features=20, out_features=12, has_bias=True)
    check(op, make_inputs(rng, "GroupedMatMul", has_bias=True))


@pytest.mark.parametrize("op_type", OPS)
def test_same_bits_for_any_number_of_threads(rng, op_type):
    inputs = make_inputs(rng, op_type, num_tokens=400)
    one, two = (check(OPS[op_type], inputs, num_threads=n) for n in (1, 2))
    assert [a.tobytes() for a in one] == [b.tobytes() for b in two]


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_bf16", "amx"])
@pytest.mark.parametrize("op_type", ["GroupedMatMul", "ExpertCombine"])
def test_instruction_sets(rng, monkeypatch, isa, op_type):
    monkeypatch.setenv("MOE_EXPORT_ISA", isa)
    check(OPS[op_type], make_inputs(rng, op_type, num_tokens=40))


@pytest.mark.parametrize(
    ("op_type", "name"), [(op, name) for op in OPS for name in OPS[op].to_onnx()]
)
def test_missing_attribute_is_named(rng, op_type, name):
    attributes = {key: value for key, value in OPS[op_type].to_onnx().items() if key != name}
    message = f"{OPS[op_type].prefix}_attributes: the node needs attribute {name} "
    with pytest.raises(Exception, match=message):
        run_node(op_type, attributes, make_inputs(rng, op_type))


@pytest.mark.parametrize(
    ("op_type", "changes", "message"),
    [
        ("ExpertDispatch", {"num_experts": 0}, "dispatch_c3: num_experts must be at least 1"),
        ("ExpertDispatch", {"hidden_size": 0}, "dispatch_c3: hidden_size must be at least 1"),
        ("ExpertDispatch", {"first_expert": -1}, "dispatch_c3: first_expert must be at least 0"),
        ("GroupedMatMul", {"num_experts": 0}, "matmul_c5: num_experts must be at least 1"),
        ("GroupedMatMul", {"in_features": -1}, "matmul_c5: in_features must be .*; found -1"),
        ("GroupedMatMul", {"out_features": 0}, "matmul_c5: out_features must be at least 1"),
        (
            "GroupedMatMul",
            {"weight_type": "int8"},
            "matmul_c2: .* weight_type int8 in",
        ),
        ("GroupedMatMul", {"weight_layout": "cuda_v1"}, "matmul_c2: .* weight_layout row_major"),
        ("GroupedMatMul", {"weight_type": "fp31"}, "matmul_attributes: weight_type must be one"),
        ("GroupedMatMul", {"block_size": 32}, "matmul_c6: block_size"),
        ("GroupedMatMul", {"has_zero_point": 1}, "matmul_c6: has_zero_point belongs to int4"),
        ("GroupedMatMul", {"has_bias": 2}, "matmul_attributes: has_bias must be 0 or 1; found 2"),
        ("GroupedMatMul", {"has_bias": 1}, "matmul_inputs: the node takes rows, .*, bias without"),
        ("ExpertCombine", {"hidden_size": 0}, "combine_c5: hidden_size must be at least 1"),
        ("ExpertCombine", {"hidden_size": "1"}, "combine_attributes: .* hidden_size of type int"),
    ],
)
def test_attributes_are_checked_when_the_session_is_made(rng, op_type, changes, message):
    with pytest.raises(Exception, match=message):
        run_node(op_type, OPS[op_type].to_onnx() | changes, make_inputs(rng, op_type))


@pytest.mark.parametrize("op_type", OPS)
@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_number_of_inputs_is_refused(rng, op_type, change):
    inputs = make_inputs(rng, op_type)
    given = dict(list((inputs | {"more": np.zeros(1, np.float32)}).items())[: len(inputs) + change])
    # More inputs than the op has with all attributes set are refused by the runtime itself.
    message = f"{OPS[op_type].prefix}_inputs: the node takes .* without gaps|not in range"
    with pytest.raises(Exception, match=message):
        run_node(op_type, OPS[op_type].to_onnx(), given)


@pytest.mark.parametrize(
    ("op_type", "name", "shape", "message"),
    [
        ("ExpertDispatch", "x", (13, 19), r"dispatch_c1: x must be \[T, H = 20\]; found \[13, 19"),
        ("ExpertDispatch", "x", (20,), r"dispatch_c1: x must be .*; found \[20\]"),
        ("ExpertDispatch", "expert_ids", (12, 3), r"dispatch_c2: expert_ids must be \[T = 13, K\]"),
        ("ExpertDispatch", "expert_ids", (13, 0), "dispatch_c2: expert_ids must be"),
        ("GroupedMatMul", "rows", (39, 12), r"matmul_c1: rows must be \[M, in_features = 20\]"),
        ("GroupedMatMul", "rows", (39, 20, 1), "matmul_c1: rows must be"),
        ("GroupedMatMul", "weight", (4, 20, 12), r"matmul_c2: weight must be \[4, 12, 20\]; found"),
        ("GroupedMatMul", "group_ends", (3,), r"matmul_c3: group_ends must be \[E = 4\]; found"),
        ("GroupedMatMul", "group_ends", (4, 1), "matmul_c3: group_ends must be"),
        ("GroupedMatMul", "bias", (12,), r"matmul_c4: bias must be \[4, 12\]; found \[12\]"),
        ("ExpertCombine", "rows", (39, 20), r"combine_c1: rows must be \[M, N = 12\]; found"),
        ("ExpertCombine", "row_map", (39,), r"combine_c2: row_map must be \[T, K\]; found \[39\]"),
        ("ExpertCombine", "row_map", (13, 0), "combine_c2: row_map must be"),
        ("ExpertCombine", "expert_weights", (13, 2), "combine_c3: expert_weights must have row_ma"),
    ],
)
def test_shapes_are_checked_at_every_call(rng, op_type, name, shape, message):
    has_bias = name == "bias"
    inputs = make_inputs(rng, op_type, has_bias=has_bias)
    inputs[name] = np.zeros(shape, inputs[name].dtype)
    attributes = OPS[op_type].to_onnx() | ({"has_bias": 1} if has_bias else {})
    with pytest.raises(Exception, match=message):
        run_node(op_type, attributes, inputs)


@pytest.mark.parametrize(
    ("op_type", "name", "dtype", "message"),
    [
        ("ExpertDispatch", "x", np.float64, "dispatch_inputs: x must be float32; found double"),
        ("ExpertDispatch", "expert_ids", np.uint8, "dispatch_inputs: expert_ids must be int32 or"),
        ("GroupedMatMul", "rows", np.float16, "matmul_inputs: rows must be float32; found float16"),
        ("GroupedMatMul", "weight", np.int8, "matmul_inputs: weight must be float32; found int8"),
        ("GroupedMatMul", "group_ends", np.int64, "matmul_inputs: group_ends must be int32; found"),
        ("GroupedMatMul", "bias", np.float64, "matmul_inputs: bias must be float32; found double"),
        ("ExpertCombine", "rows", np.float64, "combine_inputs: rows must be float32; found double"),
        ("ExpertCombine", "row_map", np.int64, "combine_inputs: row_map must be int32; found int6"),
        ("ExpertCombine", "expert_weights", np.float16, "combine_inputs: expert_weights must be"),
    ],
)
def test_wrong_type_is_refused(rng, op_type, name, dtype, message):
    has_bias = name == "bias"
    inputs = make_inputs(rng, op_type, has_bias=has_bias)
    inputs[name] = inputs[name].astype(dtype)
    attributes = OPS[op_type].to_onnx() | ({"has_bias": 1} if has_bias else {})
    with pytest.raises(Exception, match=message):
        run_node(op_type, attributes, inputs)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([0, 5, 4, 6], "found 4 after 5 for expert 2"),
        ([-1, 0, 0, 0], "found -1 after 0 for expert 0"),
        ([0, 0, 0, 40], "found 40 after 0 for expert 3"),
        ([2**31 - 1] * 4, "for expert 0"),
        ([-(2**31)] * 4, "for expert 0"),
    ],
)
def test_matmul_c7_checks_group_ends_at_every_call(rng, ends, message):
    inputs = make_inputs(rng, "GroupedMatMul") | {"group_ends": np.int32(ends)}
    expected = rf"matmul_c7: group_ends must ascend within \[0, M = 39\]; .*{message}"
    with pytest.raises(Exception, match=expected):
        run_node("GroupedMatMul", MATMUL.to_onnx(), inputs)


@pytest.mark.parametrize("row", [-2, 39, 2**31 - 1, -(2**31)])
def test_combine_c4_checks_row_map_at_every_call(rng, row):
    inputs = make_inputs(rng, "ExpertCombine")
    inputs["row_map"][12, 2] = row
    message = rf"combine_c4: row_map must hold -1 or a row in \[0, M = 39\); found {row}"
    with pytest.raises(Exception, match=message):
        run_node("ExpertCombine", COMBINE.to_onnx(), inputs)
