"""Layout ``cuda_v1``, read back as plugins/README.md lays its bytes out."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from moe_export.ops.dequantize import dequantize
from moe_export.ops.storage import ExpertMatrix, WeightStorage
from moe_export.pack.packed_weights import pack_matrix
from moe_export.pack.padded_rows import pack_padded_rows, unpack_padded_rows
from moe_export.quantize.matrix import quantize_matrix

FLOATS = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
STORAGES = [
    *(WeightStorage(kind) for kind in (*FLOATS, "int8", "fp8")),
    *(WeightStorage("int4", block, zero) for block in (32, 64, 128) for zero in (False, True)),
]


def read_int4(data, rows, columns, width, storage):
    """All columns of int4 rows, by the words of the README: byte j of block b of 64 columns."""
    block, blocks = storage.block_size, width // storage.block_size
    codes = data[: rows * width // 2].reshape(rows, width // 2)
    rest = data[rows * width // 2 :]
    scale = rest[: 4 * blocks * rows].view(np.float32).reshape(blocks, rows)
    if storage.has_zero_point:
        zero = rest[4 * blocks * rows :][: blocks * rows].view(np.int8).reshape(blocks, rows)
    found = np.zeros((rows, width), np.float32)
    for row, column in np.ndindex(found.shape):
        b, inside = divmod(column, 64)
        code = codes[row, 32 * b + inside % 32] >> (4 if inside >= 32 else 0) & 15
        k = column // block
        middle = int(zero[k, row]) if storage.has_zero_point else 8
        if column >= columns:
            assert code == middle, "what fills a row up stands for zero"
        found[row, column] = scale[k, row] * np.float32(int(code) - middle)
    end = 4 * blocks * rows + (blocks * rows if storage.has_zero_point else 0)
    assert not rest[end:].any()
    return found


def read_rows(data, rows, columns, storage):
    """Every weight of an expert, those that fill its rows up included."""
    kind = storage.weight_type
    step = 128 if storage.block_size == 128 else 64
    width = -(-columns // step) * step
    if kind == "int4":
        return read_int4(data, rows, columns, width, storage)
    if kind in FLOATS:
        return data.view(FLOATS[kind])[: rows * width].reshape(rows, width).astype(np.float32)
    codes = data[: rows * width].view(np.int8).reshape(rows, width)
    values = codes if kind == "int8" else codes.view(ml_dtypes.float8_e4m3fn)
    scale = data[rows * width :][: 4 * rows].view(np.float32)
    return scale[:, None] * values.astype(np.float32)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(3, 64), (5, 45), (2, 97), (4, 200)])
def test_bytes_hold_the_matrix_and_zeros_beyond_it(storage, rows, columns):
    rng = np.random.default_rng(0)
    matrix = ExpertMatrix("up_", rows, columns, gated=rows % 2 == 0)
    experts = [
        quantize_matrix(storage, rng.standard_normal((rows, columns), np.float32)) for _ in range(2)
    ]
    stacked = {p: ir.tensor(np.stack([e[p] for e in experts])) for p in experts[0]}
    packed = pack_matrix(dataclasses.replace(storage, layout="cuda_v1"), matrix, stacked, 2)
    for e, parts in enumerate(experts):
        data = packed.expert(e).view(np.uint8)
        assert data.size % 128 == 0
        assert list(packed.shape) == [2, data.size]
        found = read_rows(data, rows, columns, storage)
        expected = dequantize(storage, parts, columns)
        np.testing.assert_array_equal(found[:, :columns], expected)
        assert not found[:, columns:].any()
        back = unpack_padded_rows(storage, matrix, packed.expert(e))
        np.testing.assert_array_equal(dequantize(storage, back, columns), expected)


def test_scales_of_blocks_beyond_the_matrix_are_zero():
    storage = WeightStorage("int4", 32)
    parts = quantize_matrix(storage, np.ones((2, 70), np.float32))
    data = pack_padded_rows("int4", **parts, columns=70, block_size=32).view(np.uint8)
    scales = data[2 * 64 : 2 * 64 + 4 * 2 * 4].view(np.float32).reshape(4, 2)
    assert (scales[:3] != 0).all()
    assert not scales[3:].any()


def test_the_first_rows_are_the_gates():
    weight = np.arange(4 * 64, dtype=np.float32).reshape(4, 64)
    parts = {"weight": ir.tensor(weight[None])}
    matrix = ExpertMatrix("up_", 4, 64, gated=True)
    packed = pack_matrix(WeightStorage(layout="cuda_v1"), matrix, parts, 1)
    np.testing.assert_array_equal(packed.expert(0).view(np.float32).reshape(4, 64), weight)


def test_a_type_without_a_form_is_refused():
    with pytest.raises(ValueError, match="no form of mxfp4"):
        pack_padded_rows("mxfp4", np.zeros((1, 32), np.int8), columns=64)
