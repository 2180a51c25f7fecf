"""One expert's matrix in every storage: what rounding costs, and what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moe_export.errors import UsageError
from moe_export.ops.dequantize import E2M1_VALUES, dequantize
from moe_export.ops.storage import ExpertMatrix, WeightStorage
from moe_export.quantize.int4 import pack_nibbles
from moe_export.quantize.matrix import quantize_int8, quantize_matrix, stores_exactly
from moe_export.quantize.mxfp4 import MXFP4, encode_mxfp4

INT4 = [WeightStorage("int4", block, zero) for block in (32, 64, 128) for zero in (False, True)]
ROUNDED = [*(WeightStorage(kind) for kind in ("fp16", "bf16", "int8", "fp8")), *INT4]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def restore(storage, matrix):
    return dequantize(storage, quantize_matrix(storage, matrix), matrix.shape[1])


def relative_rms(found, expected):
    return np.sqrt(np.square(found - expected).sum() / np.square(expected).sum())


@pytest.mark.parametrize("storage", [WeightStorage(), *ROUNDED], ids=str)
@pytest.mark.parametrize("columns", [1, 31, 128, 129, 256])
def test_parts_have_the_contracts_shapes_and_codes(rng, storage, columns):
    matrix = rng.standard_normal((5, columns), np.float32)
    parts = quantize_matrix(storage, matrix)
    shapes = storage.shapes(1, ExpertMatrix("", 5, columns))
    assert {part: (1, *array.shape) for part, array in parts.items()} == shapes
    if "zero" in parts:
        assert (parts["zero"].min(), parts["zero"].max()) >= (0, 0)
        assert parts["zero"].max() <= 15
    if storage.weight_type == "int4" and columns % 2:
        assert not (parts["weight"][:, -1].view(np.uint8) >> 4).any()


# Relative RMS errors of normal weights: 2^-9 and 2^-12 at most for the floats, a 1/255 of the range
# for int8, and for int4 what a search over scales reaches (a plain max / 7 gives 0.117 at 128).
@pytest.mark.parametrize(
    ("storage", "bound"),
    [
        (WeightStorage("fp16"), 2.5e-4),
        (WeightStorage("bf16"), 2e-3),
        (WeightStorage("int8"), 8e-3),
        (WeightStorage("fp8"), 0.027),
        (WeightStorage("int4", 32), 0.083),
        (WeightStorage("int4", 64), 0.092),
        (WeightStorage("int4", 128), 0.099),
        (WeightStorage("int4", 32, True), 0.079),
        (WeightStorage("int4", 128, True), 0.097),
    ],
    ids=str,
)
def test_error_of_normal_weights(rng, storage, bound):
    matrix = rng.standard_normal((64, 512), np.float32)
    error = relative_rms(restore(storage, matrix), matrix)
    assert bound / 3 < error < bound


def test_bfloat16_rounds_to_nearest_even():
    tie = np.float32(1 + 2**-8)  # between 1 and 1 + 2^-7
    matrix = np.float32([[tie, np.nextafter(tie, np.float32(2)), 1 + 3 * 2**-8]])
    found = quantize_matrix(WeightStorage("bf16"), matrix)["weight"]
    assert found.dtype == ml_dtypes.bfloat16
    assert found.astype(np.float32).tolist() == [[1, 1 + 2**-7, 1 + 2**-6]]


def test_int8_takes_the_whole_range_of_each_row():
    parts = quantize_int8(np.float32([[1, -2], [0, 0], [1e-3, 5e-4], [1e-45, 0]]))
    assert parts["weight"].tolist()[:3] == [[64, -127], [0, 0], [127, 64]]
    np.testing.assert_allclose(parts["scale"][:3], [2 / 127, 1, 1e-3 / 127], rtol=1e-6)
    assert np.isfinite(parts["scale"]).all()


@pytest.mark.parametrize("storage", [*INT4, WeightStorage("int8")], ids=str)
def test_blocks_of_zeros_stay_zero(storage):
    matrix = np.zeros((3, 256), np.float32)
    matrix[1, 130] = 1
    assert np.array_equal(restore(storage, matrix), matrix)


@pytest.mark.parametrize("sign", [1, -1])
def test_symmetric_int4_gives_either_sign_the_longer_side(sign):
    matrix = np.float32([[sign * v for v in range(-8, 8)] * 2])
    found = restore(WeightStorage("int4", 32), matrix)
    np.testing.assert_allclose(found, matrix, rtol=0, atol=1e-6)


def test_zero_points_hold_blocks_of_one_sign(rng):
    matrix = rng.random((32, 128), np.float32) + 1
    symmetric = relative_rms(restore(WeightStorage("int4", 128), matrix), matrix)
    assert relative_rms(restore(WeightStorage("int4", 128, True), matrix), matrix) < symmetric


@settings(max_examples=60, deadline=None, database=None)
@given(
    matrix=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 140)),
        elements=st.floats(-1e4, 1e4, width=32),
    ),
    storage=st.sampled_from(INT4),
)
def test_int4_is_never_worse_than_the_plain_scale(matrix, storage):
    found, block = restore(storage, matrix), storage.block_size
    assert np.isfinite(found).all()
    for start in range(0, matrix.shape[1], block):
        part = matrix[:, start : start + block].astype(np.float64)
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        steps = 15 if storage.has_zero_point else 7
        extent = high - low if storage.has_zero_point else np.abs(part).max(1)
        plain = (extent / steps)[:, None]
        error = np.square(found[:, start : start + block] - part).sum(1)
        # Zeros and scales are rounded, so that at most half a step more may be lost.
        assert (error <= part.shape[1] * np.square(plain[:, 0]) + 1e-12).all()


def test_nibbles_hold_the_even_column_in_the_lower_half():
    assert pack_nibbles(np.uint8([[1, 2, 15]])).view(np.uint8).tolist() == [[0x21, 0x0F]]


def mxfp4_values(rng, shape, exponents=(-127, 125)):
    codes = rng.integers(0, 16, (*shape[:-1], shape[-1] // 32, 32))
    powers = rng.integers(*exponents, (*codes.shape[:-1], 1))
    return np.ldexp(E2M1_VALUES[codes], powers).reshape(shape).astype(np.float32)


@pytest.mark.parametrize("exponents", [(-3, 4), (-127, -120), (120, 126)])
def test_mxfp4_is_found_again_bit_for_bit(rng, exponents):
    matrix = mxfp4_values(rng, (7, 96), exponents)
    found = restore(MXFP4, matrix)
    assert np.array_equal(found.view(np.uint32), matrix.view(np.uint32))


def test_mxfp4_blocks_of_small_codes_are_found_under_a_smaller_scale(rng):
    """Codes of at most 3 double: the same values under half the scale."""
    matrix = np.float32([[0.5, 1, 1.5, -0.5] * 8]) * 4
    parts = encode_mxfp4(matrix)
    assert parts["scale"].view(np.uint8).tolist() == [[127]]
    assert np.array_equal(dequantize(MXFP4, parts, 32), matrix)


@settings(max_examples=60, deadline=None, database=None)
@given(
    codes=hnp.arrays(np.uint8, (2, 64), elements=st.integers(0, 15)),
    power=st.integers(-127, 125),
)
def test_mxfp4_of_any_codes_is_exact(codes, power):
    matrix = np.ldexp(E2M1_VALUES[codes], power).astype(np.float32)
    found = restore(MXFP4, matrix)
    assert np.array_equal(found.view(np.uint32), matrix.view(np.uint32))


@pytest.mark.parametrize("value", [0.7, 5, 1 + 2**-20, np.nan, np.inf])
def test_what_is_no_mxfp4_is_refused(value):
    matrix = np.float32([[1, 6, *[0] * 29, value]])
    with pytest.raises(UsageError, match="MXFP4"):
        encode_mxfp4(matrix)


def test_columns_that_are_no_mxfp4_blocks_are_refused():
    with pytest.raises(UsageError, match="blocks of 32 columns; 33"):
        encode_mxfp4(np.zeros((1, 33), np.float32))


@pytest.mark.parametrize("storage", ROUNDED, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(storage, value):
    with pytest.raises(UsageError, match=r"NaN or infinity.* keep fp32"):
        quantize_matrix(storage, np.float32([[value, 1]]))


def test_weights_beyond_half_precision_are_refused():
    with pytest.raises(UsageError, match=r"7e\+04, is beyond float16: take bf16"):
        quantize_matrix(WeightStorage("fp16"), np.float32([[7e4]]))


def test_exact_storage_is_told_from_rounding(rng):
    matrix = rng.standard_normal((4, 64), np.float32)
    narrow = matrix.astype(ml_dtypes.bfloat16).astype(np.float32)
    bf16, fp16 = WeightStorage("bf16"), WeightStorage("fp16")
    assert not stores_exactly(bf16, matrix)
    assert stores_exactly(bf16, narrow)
    assert not stores_exactly(MXFP4, narrow)
    assert stores_exactly(MXFP4, mxfp4_values(rng, (4, 64)))
    assert stores_exactly(fp16, matrix.astype(np.float16).astype(np.float32))
    assert not stores_exactly(fp16, np.float32([[1e5]]))
