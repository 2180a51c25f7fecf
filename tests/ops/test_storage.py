"""Stored weights: shapes, packed sizes, and the numbers that row-major storage stands for."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from moe_export.errors import ContractError
from moe_export.ops import reference, reference_rows, torch_ops
from moe_export.ops.contract import check_model
from moe_export.ops.dequantize import E2M1_VALUES, E4M3_VALUES, dequantize
from moe_export.ops.padded_rows import padded_rows_bytes
from moe_export.ops.panels import packed_bytes
from moe_export.ops.portable import function_body
from moe_export.ops.spec import DOMAIN, GroupedExperts, GroupedMatMul
from moe_export.ops.storage import PACKED_TYPES, ExpertMatrix, WeightStorage

INT4 = {"weight_type": "int4", "block_size": 32}
ZEROS = INT4 | {"has_zero_point": True}
MXFP4 = {"weight_type": "mxfp4", "block_size": 32}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("values", "shapes"),
    [
        ({"weight_type": "bf16"}, {"weight": (3, 5, 33)}),
        ({"weight_type": "int8"}, {"weight": (3, 5, 33), "scale": (3, 5)}),
        (INT4, {"weight": (3, 5, 17), "scale": (3, 5, 2)}),
        (ZEROS, {"weight": (3, 5, 17), "scale": (3, 5, 2), "zero": (3, 5, 2)}),
        ({"weight_type": "fp8"}, {"weight": (3, 5, 33), "scale": (3, 5)}),
        ({"weight_type": "int8", "layout": "cpu_v1"}, {"weight": (3, 128 + 64 * 32)}),
        ({"weight_type": "int8", "layout": "cuda_v1"}, {"weight": (3, 384)}),
    ],
)
def test_shapes_of_a_stored_matrix(values, shapes):
    assert WeightStorage(**values).shapes(3, ExpertMatrix("up_", 5, 33)) == shapes


@pytest.mark.parametrize(("kind", "layout"), [("fp8", "cpu_v1"), ("mxfp4", "cuda_v1")])
def test_a_layout_refuses_a_type_that_it_has_no_form_of(kind, layout):
    block = 32 if kind == "mxfp4" else 0
    with pytest.raises(ContractError, match=f"experts_c9: weight_layout {layout} has no form of"):
        GroupedExperts(**SIZES, weight_type=kind, block_size=block, weight_layout=layout)


@pytest.mark.parametrize(
    ("kind", "rows", "columns", "options", "expected"),
    [
        ("fp32", 1, 1, {}, 64 * 32 * 4),
        ("fp32", 33, 65, {}, 2 * 128 * 32 * 4),
        ("bf16", 32, 64, {}, 64 * 32 * 2),
        ("fp16", 32, 64, {"gated": True}, 64 * 32 * 2),
        ("fp16", 34, 64, {"gated": True}, 2 * 64 * 32 * 2),
        ("int8", 32, 64, {}, 128 + 64 * 32),
        ("int4", 32, 64, {"block_size": 32}, 2 * (128 + 512)),
        ("int4", 32, 1, {"block_size": 128}, 128 + 2048),
        ("int4", 32, 64, {"block_size": 64, "has_zero_point": True}, 128 + 64 + 1024),
        ("mxfp4", 32, 96, {"block_size": 32}, 2 * (64 + 1024)),
    ],
)
def test_packed_bytes(kind, rows, columns, options, expected):
    assert packed_bytes(kind, rows, columns, **options) == expected


def test_fp8_has_no_packed_size():
    with pytest.raises(ValueError, match="fp8 has no packed form"):
        packed_bytes("fp8", 32, 64)


@pytest.mark.parametrize(
    ("kind", "rows", "columns", "options", "expected"),
    [
        ("fp32", 1, 1, {}, 64 * 4),
        ("bf16", 3, 65, {}, 3 * 128 * 2),
        ("fp16", 1, 64, {}, 128),
        ("int8", 32, 64, {}, 32 * 64 + 32 * 4),
        ("fp8", 1, 64, {}, 128),
        ("int4", 32, 64, {"block_size": 32}, 32 * 32 + 2 * 32 * 4),
        ("int4", 32, 65, {"block_size": 32}, 32 * 64 + 4 * 32 * 4),
        ("int4", 32, 65, {"block_size": 128}, 32 * 64 + 32 * 4),
        ("int4", 32, 64, {"block_size": 64, "has_zero_point": True}, 1024 + 128 + 128),
    ],
)
def test_padded_rows_bytes(kind, rows, columns, options, expected):
    assert padded_rows_bytes(kind, rows, columns, **options) == expected


def test_mxfp4_has_no_padded_rows():
    with pytest.raises(ValueError, match="mxfp4 has no form in cuda_v1"):
        padded_rows_bytes("mxfp4", 32, 64, block_size=32)


def test_fp8_codes_are_those_of_e4m3fn():
    codes = np.arange(256, dtype=np.uint8)
    expected = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(E4M3_VALUES, expected)
    parts = {"weight": np.uint8([[0x7E, 0x80]]).view(np.int8), "scale": np.float32([0.5])}
    found = dequantize(WeightStorage("fp8"), parts, 2)
    assert found.tolist() == [[224, 0]]
    assert np.signbit(found[0, 1])


def test_narrow_floats_stand_for_themselves():
    for dtype, kind in ((np.float16, "fp16"), (ml_dtypes.bfloat16, "bf16")):
        weight = np.array([[1.5, -0.25, 3.0]], dtype)
        found = dequantize(WeightStorage(kind), {"weight": weight}, 3)
        assert found.dtype == np.float32
        assert found.tolist() == [[1.5, -0.25, 3.0]]


def test_int8_is_scaled_by_row():
    parts = {"weight": np.int8([[127, -127], [1, 0]]), "scale": np.float32([0.5, 2])}
    found = dequantize(WeightStorage("int8"), parts, 2)
    assert found.tolist() == [[63.5, -63.5], [2, 0]]


def test_int4_takes_the_lower_half_of_a_byte_first_and_zero_at_eight():
    weight = np.zeros((1, 17), np.int8)
    weight[0, 0] = 0x70 + 0xF  # columns 0 and 1
    weight[0, 16] = 0x9  # column 32, in the second block
    parts = {"weight": weight, "scale": np.float32([[2, 10]])}
    found = dequantize(WeightStorage("int4", 32), parts, 33)
    assert found.shape == (1, 33)
    assert found[0, [0, 1, 2, 32]].tolist() == [14, -2, -16, 10]


def test_int4_subtracts_the_zero_point_of_the_block():
    parts = {
        "weight": np.full((1, 32), 0x55, np.uint8).view(np.int8),
        "scale": np.float32([[1, 1]]),
        "zero": np.int8([[0, 15]]),
    }
    found = dequantize(WeightStorage("int4", 32, has_zero_point=True), parts, 64)
    assert found[0, [0, 31, 32, 63]].tolist() == [5, 5, -10, -10]


def test_mxfp4_is_a_power_of_two_times_e2m1():
    codes = np.arange(16, dtype=np.uint8)
    packed = (codes[::2] | codes[1::2] << 4).view(np.int8)
    weight = np.concatenate([packed, packed])[None]
    parts = {"weight": weight, "scale": np.uint8([[128]]).view(np.int8)}
    found = dequantize(WeightStorage("mxfp4", 32), parts, 32)
    assert found[0, :16].tolist() == (2 * E2M1_VALUES).tolist()
    assert np.signbit(found[0, 8])
    assert E2M1_VALUES[:8].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


@pytest.mark.parametrize("values", [{"layout": "cuda_v1"}, {"layout": "cpu_v1"}])
def test_storage_without_rows_is_refused(values):
    with pytest.raises(ContractError, match="no meaning row by row"):
        dequantize(WeightStorage(**values), {"weight": np.zeros((1, 1), np.int8)}, 1)


def stored_int4(rng, shape):
    """Random codes, scales and zero points of a matrix ``[E, N, K]``."""
    blocks = (*shape[:2], -(-shape[2] // 32))
    return {
        "weight": rng.integers(-128, 128, (*shape[:2], -(-shape[2] // 2)), np.int8),
        "scale": rng.random(blocks, np.float32),
        "zero": rng.integers(0, 16, blocks, np.int8),
    }


def test_reference_experts_compute_with_dequantized_weights(rng):
    sizes = {"num_experts": 2, "hidden_size": 40, "intermediate_size": 6, "has_bias": True}
    plain, quantized = GroupedExperts(**sizes), GroupedExperts(**sizes, **ZEROS)
    inputs = {
        "x": rng.standard_normal((3, 40), np.float32),
        "expert_ids": np.int32([[0, 1], [1, 2], [0, 0]]),
        "expert_weights": rng.random((3, 2), np.float32),
        "up_bias": rng.standard_normal((2, 12), np.float32),
        "down_bias": rng.standard_normal((2, 40), np.float32),
    }
    stored, dense = {}, {}
    for side, rows, columns in (("up", 12, 40), ("down", 40, 6)):
        parts = stored_int4(rng, (2, rows, columns))
        stored |= {f"{side}_{part}": array for part, array in parts.items()}
        dense[f"{side}_weight"] = dequantize(quantized.storage, parts, columns)
    found = reference.grouped_experts(**inputs, **stored, attributes=quantized)
    expected = reference.grouped_experts(**inputs, **dense, attributes=plain)
    np.testing.assert_array_equal(found, expected)
    del stored["up_zero"]
    with pytest.raises(ContractError, match="experts_inputs"):
        reference.grouped_experts(**inputs, **stored, attributes=quantized)


def test_reference_matmul_computes_with_dequantized_weights(rng):
    sizes = {"num_experts": 2, "in_features": 40, "out_features": 6}
    plain, quantized = GroupedMatMul(**sizes), GroupedMatMul(**sizes, **ZEROS)
    parts = stored_int4(rng, (2, 6, 40))
    rows, ends = rng.standard_normal((5, 40), np.float32), np.int32([2, 4])
    found = reference_rows.grouped_matmul(rows, group_ends=ends, attributes=quantized, **parts)
    weight = dequantize(quantized.storage, parts, 40)
    np.testing.assert_array_equal(found, reference_rows.grouped_matmul(rows, weight, ends, plain))


SIZES = {"num_experts": 2, "hidden_size": 64, "intermediate_size": 32}


@pytest.mark.parametrize("values", [INT4, {"weight_type": "bf16"}, {"weight_layout": "cpu_v1"}])
def test_backends_of_float32_refuse_other_storage(values):
    experts = GroupedExperts(**SIZES, **values)
    with pytest.raises(ContractError, match="experts_c4: this backend computes weight_type fp32"):
        torch_ops.grouped_experts([None] * len(experts.input_names()), experts)
    with pytest.raises(ContractError, match="experts_c4: this backend"):
        function_body(experts)
    matmul = GroupedMatMul(num_experts=2, in_features=64, out_features=3, **values)
    with pytest.raises(ContractError, match="matmul_c2: this backend"):
        function_body(matmul)
    with pytest.raises(ContractError, match="matmul_c2: this backend"):
        torch_ops.grouped_matmul(None, None, None, matmul)


DTYPES = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}


def one_node_model(attributes, dtypes):
    """A model of one node with inputs of the contract's shapes; ``dtypes`` by input name."""
    shapes = {"x": ("T", 64), "expert_ids": ("T", "K"), "expert_weights": ("T", "K")}
    shapes |= attributes.weight_shapes()
    values = [
        ir.Value(name=n, type=ir.TensorType(dtypes(n)), shape=ir.Shape(shapes[n]))
        for n in attributes.input_names()
    ]
    node = ir.node("GroupedExperts", values, attributes.to_onnx(), domain=DOMAIN, name="node")
    return ir.Model(ir.Graph(values, node.outputs, nodes=[node], name="g"), ir_version=10)


def right_dtypes(attributes, x=ir.DataType.FLOAT):
    def dtype(name):
        if name == "expert_ids":
            return ir.DataType.INT32
        if name == "x":
            return x
        if name.endswith("weight") and name.startswith(("up", "down")):
            packed = attributes.weight_layout != "row_major"
            byte = ir.DataType.INT8
            return byte if packed else DTYPES.get(attributes.weight_type, byte)
        is_byte = name.endswith("zero") or (
            name.endswith("scale") and attributes.weight_type == "mxfp4"
        )
        return ir.DataType.INT8 if is_byte else ir.DataType.FLOAT

    return dtype


@pytest.mark.parametrize("layout", ["row_major", "cpu_v1", "cuda_v1"])
@pytest.mark.parametrize(
    "values", [*({"weight_type": k} for k in (*DTYPES, "int8", "fp8")), INT4, ZEROS, MXFP4]
)
def test_graph_check_knows_the_types_and_shapes_of_every_storage(values, layout):
    if values["weight_type"] not in PACKED_TYPES.get(layout, values["weight_type"]):
        pytest.skip(f"{layout} has no form of {values['weight_type']}")
    attributes = GroupedExperts(**SIZES, **values, weight_layout=layout)
    right = right_dtypes(attributes)
    check_model(one_node_model(attributes, right))
    for wrong in attributes.parameter_names():

        def dtypes(name, wrong=wrong):
            return ir.DataType.DOUBLE if name == wrong else right(name)

        with pytest.raises(ContractError, match=f"experts_inputs: {wrong} must be .*node"):
            check_model(one_node_model(attributes, dtypes))


@pytest.mark.parametrize("x", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_graph_check_takes_tokens_in_half_precision(x):
    attributes = GroupedExperts(**SIZES, weight_type="int8", has_bias=True, weight_layout="cuda_v1")
    check_model(one_node_model(attributes, right_dtypes(attributes, x)))
    for name in ("expert_weights", "up_bias"):

        def dtypes(other, name=name):
            return x if other == name else right_dtypes(attributes, x)(other)

        with pytest.raises(ContractError, match=f"experts_inputs: {name} must be float"):
            check_model(one_node_model(attributes, dtypes))


@pytest.mark.parametrize("values", [INT4, ZEROS, MXFP4, {"weight_layout": "cpu_v1"}])
def test_shapes_of_weights_scales_and_zeros_are_checked(values):
    attributes = GroupedExperts(**SIZES, **values)
    shapes = {"x": (3, 64), "expert_ids": (3, 1), "expert_weights": (3, 1)}
    shapes |= attributes.weight_shapes()
    attributes.check_shapes(shapes)
    for name in attributes.parameter_names():
        wrong = (*shapes[name][:-1], shapes[name][-1] + 1)
        with pytest.raises(ContractError, match=f"experts_c4: {name} must be"):
            attributes.check_shapes({**shapes, name: wrong})


def test_attributes_give_their_storage():
    attributes = GroupedExperts(**SIZES, **ZEROS, weight_layout="cpu_v1")
    assert attributes.storage == WeightStorage("int4", 32, True, "cpu_v1")
    packed = attributes.storage.packed_bytes(attributes.matrices[0])
    assert attributes.weight_shapes()["up_weight"] == (2, packed)
    assert dataclasses.replace(attributes, weight_layout="row_major").storage.parts == (
        "weight",
        "scale",
        "zero",
    )
