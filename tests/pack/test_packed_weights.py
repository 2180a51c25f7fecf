"""Packed bytes, read back one by one as plugins/README.md lays them out."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from moe_export.lower.expert_tensor import ExpertTensor
from moe_export.ops.dequantize import E2M1_VALUES, dequantize
from moe_export.ops.nodes import PATH_KEY, node_attributes
from moe_export.ops.panels import padded_columns, panel_bytes
from moe_export.ops.spec import DOMAIN, GroupedExperts
from moe_export.ops.storage import ExpertMatrix, WeightStorage
from moe_export.pack.packed_weights import pack_matrix, pack_weights
from moe_export.quantize.matrix import quantize_matrix

STORAGES = [
    *(WeightStorage(kind) for kind in ("fp32", "fp16", "bf16", "int8")),
    *(WeightStorage("int4", block, zero) for block in (32, 64, 128) for zero in (False, True)),
    WeightStorage("mxfp4", 32),
]
FLOATS = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def read_weight(storage, panel, row, column):
    """The weight at ``row`` and ``column`` of a panel's bytes, in the README's words."""
    kind, block = storage.weight_type, storage.block_size
    if kind in FLOATS:
        group = 1 if kind == "fp32" else 2
        values = panel.view(FLOATS[kind]).reshape(-1, 32, group)
        return np.float32(values[column // group, row, column % group])
    if kind == "int8":
        codes = panel[128:].view(np.int8).reshape(-1, 32, 4)
        return panel[:128].view(np.float32)[row] * np.float32(codes[column // 4, row, column % 4])
    if kind == "int4":
        whole = 128 + 64 * storage.has_zero_point + 16 * block
        part, inside = panel.reshape(-1, whole)[column // block], column % block
        zero = np.int8(part[128:160].view(np.int8)[row]) if storage.has_zero_point else 8
        codes = part[whole - 16 * block :].reshape(-1, 16, 4)
        code = codes[inside // 4, row % 16, inside % 4] >> (4 if row >= 16 else 0) & 15
        return part[:128].view(np.float32)[row] * np.float32(int(code) - int(zero))
    pair, inside = panel.reshape(-1, 64 + 1024)[column // 64], column % 64
    half, inside = inside // 32, inside % 32
    code = pair[64:].reshape(2, 8, 16, 4)[half, inside // 4, row % 16, inside % 4]
    code = code >> (4 if row >= 16 else 0) & 15
    return np.ldexp(E2M1_VALUES[code], int(pair[:64].reshape(2, 32)[half, row]) - 127)


def place(matrix, row):
    """The panel of a row and its place there."""
    if not matrix.gated:
        return divmod(row, 32)
    half = matrix.rows // 2
    panel, inside = divmod(row % half, 16)
    return panel, inside + (16 if row >= half else 0)


def draw(rng, storage, shape):
    if storage.weight_type == "mxfp4":
        codes = rng.integers(0, 16, shape)
        powers = np.repeat(rng.integers(-3, 4, (shape[0], shape[1] // 32)), 32, axis=1)
        return np.ldexp(E2M1_VALUES[codes], powers).astype(np.float32)
    return rng.standard_normal(shape, np.float32)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize(
    "matrix",
    [
        ExpertMatrix("down_", 5, 32),
        ExpertMatrix("down_", 33, 96),
        ExpertMatrix("up_", 40, 160, gated=True),
        ExpertMatrix("up_", 2, 64, gated=True),
        ExpertMatrix("", 37, 45),
    ],
    ids=str,
)
def test_every_weight_lies_where_the_layout_says(storage, matrix):
    if storage.weight_type == "mxfp4" and matrix.columns % 32:
        pytest.skip("MXFP4 has whole blocks")
    rng = np.random.default_rng(0)
    parts = quantize_matrix(storage, draw(rng, storage, (matrix.rows, matrix.columns)))
    expected = dequantize(storage, parts, matrix.columns)
    tensors = {part: ir.tensor(array[None]) for part, array in parts.items()}
    packed = pack_matrix(dataclasses.replace(storage, layout="cpu_v1"), matrix, tensors, 1)
    size = panel_bytes(
        storage.weight_type,
        matrix.columns,
        block_size=storage.block_size,
        has_zero_point=storage.has_zero_point,
    )
    panels = packed.expert(0).view(np.uint8).reshape(-1, size)
    assert list(packed.shape) == [1, panels.size]
    found = np.zeros((len(panels), 32, padded_columns(matrix.columns, storage.block_size)))
    for panel, row, column in np.ndindex(found.shape):
        found[panel, row, column] = read_weight(storage, panels[panel], row, column)
    assert np.isfinite(found).all(), "zeros times what fills columns up have to be zeros"
    for row in range(matrix.rows):
        panel, inside = place(matrix, row)
        np.testing.assert_array_equal(found[panel, inside, : matrix.columns], expected[row])
        found[panel, inside] = 0
    assert not found.any(), "rows are filled up with zeros"


def model_of(attributes, tensors, count=1):
    """A graph whose nodes share their weights."""
    names = attributes.input_names()
    given = [ir.Value(name=n, type=ir.TensorType(ir.DataType.FLOAT)) for n in names[:3]]
    given[1].type = ir.TensorType(ir.DataType.INT32)
    for value, shape in zip(given, (("T", 64), ("T", "K"), ("T", "K")), strict=True):
        value.shape = ir.Shape(shape)
    stored = []
    for name in names[3:]:
        tensor = ir.tensor(tensors[name], name=name)
        kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        stored.append(ir.Value(name=name, type=kind, shape=shape, const_value=tensor))
    nodes = [
        ir.node(
            "GroupedExperts",
            [*given, *stored],
            attributes.to_onnx(),
            domain=DOMAIN,
            name=f"node{i}",
            metadata_props={PATH_KEY: f"layer#{i}"},
        )
        for i in range(count)
    ]
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph(given, outputs, nodes=nodes, initializers=stored, name="g")
    return ir.Model(graph, ir_version=10)


SIZES = {"num_experts": 2, "hidden_size": 64, "intermediate_size": 32}


def test_nodes_are_packed_and_the_graph_stays():
    attributes = GroupedExperts(**SIZES, has_bias=True)
    rng = np.random.default_rng(0)
    tensors = {n: rng.standard_normal(s, np.float32) for n, s in attributes.weight_shapes().items()}
    model = model_of(attributes, tensors, count=2)
    packed = pack_weights(model)
    assert {node_attributes(n).weight_layout for n in model.graph} == {"row_major"}
    first, second = packed.graph
    wanted = dataclasses.replace(attributes, weight_layout="cpu_v1")
    assert node_attributes(first) == node_attributes(second) == wanted
    assert list(first.inputs[3:]) == list(second.inputs[3:])
    assert [v.name for v in first.inputs[3:]] == [
        "up_weight.cpu_v1",
        "down_weight.cpu_v1",
        "up_bias",
        "down_bias",
    ]
    assert set(packed.graph.initializers) == {v.name for v in first.inputs[3:]}
    again = pack_weights(packed)
    assert [v.name for v in again.graph[0].inputs[3:]] == [v.name for v in first.inputs[3:]]


def test_experts_are_packed_one_at_a_time():
    read = []

    def expert(index):
        read.append(index)
        return np.full((4, 64), index, np.float32)

    weight = ExpertTensor(expert, ir.DataType.FLOAT, (3, 4, 64), "w")
    packed = pack_matrix(WeightStorage(), ExpertMatrix("", 4, 64), {"weight": weight}, 3)
    assert packed.expert(2).view(np.float32).max() == 2
    assert read == [2]
    whole = np.frombuffer(packed.tobytes(), np.float32)
    assert whole.size == 3 * 64 * 32
    assert read == [2, 0, 1, 2]


def test_an_expert_tensor_is_written_as_its_bytes(tmp_path):
    values = np.arange(12).reshape(3, 2, 2).astype(ml_dtypes.bfloat16)
    tensor = ExpertTensor(lambda e: values[e].T, ir.DataType.BFLOAT16, (3, 2, 2), "w")
    with (tmp_path / "w").open("wb") as file:
        tensor.tofile(file)
    assert (tmp_path / "w").read_bytes() == tensor.tobytes() == values.swapaxes(1, 2).tobytes()
    assert tensor.numpy().dtype == ml_dtypes.bfloat16
