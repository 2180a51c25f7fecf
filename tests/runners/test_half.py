"""Half precision at a model's boundary."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from moe_export.errors import UsageError
from moe_export.runners.half import round_to_bfloat16, widen_bfloat16
from moe_export.runners.onnxruntime import OnnxRuntimeRunner

TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


def test_rounding_is_to_the_nearest_with_ties_to_even():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(10_000, np.float32) * np.float32(10) ** rng.integers(
        -30, 30, 10_000
    )
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -0.0, np.inf, -np.inf, 3.3e38, 1e-40], np.float32)
    values = np.concatenate([values, ties]).astype(np.float32)
    bits = round_to_bfloat16(values)
    np.testing.assert_array_equal(bits, values.astype(ml_dtypes.bfloat16).view(np.uint16))
    expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(widen_bfloat16(bits), expected)


def test_nan_stays_nan_whatever_its_bits():
    nans = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(widen_bfloat16(round_to_bfloat16(nans))).all()


@pytest.fixture(params=sorted(TYPES))
def runner(request, tmp_path):
    """A session that doubles x, ``[n, 2]`` in half precision."""
    kind = TYPES[request.param]
    x = ir.Value(name="x", type=ir.TensorType(kind), shape=ir.Shape(["n", 2]))
    wide = ir.node("Cast", [x], {"to": 1})
    twice = ir.node("Add", [wide.outputs[0]] * 2)
    narrow = ir.node("Cast", twice.outputs, {"to": int(kind)})
    y = narrow.outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [y], nodes=[wide, twice, narrow], opset_imports={"": 20}, name="twice")
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "twice.onnx")
    return request.param, OnnxRuntimeRunner(tmp_path / "twice.onnx", None)


def test_float32_is_rounded_to_what_an_input_is(runner):
    kind, session = runner
    x = np.array([[1 + 2**-12, 0.1], [3, np.inf]], np.float32)
    found = session.run({"x": x})["y"]
    dtype = np.float16 if kind == "float16" else ml_dtypes.bfloat16
    assert found.dtype == (np.float16 if kind == "float16" else np.float32)
    np.testing.assert_array_equal(found.astype(np.float32), 2 * x.astype(dtype).astype(np.float32))


def test_nothing_is_a_result_too(runner):
    assert runner[1].run({"x": np.zeros((0, 2), np.float32)})["y"].shape == (0, 2)


def test_other_types_are_refused(runner):
    with pytest.raises(UsageError, match="input x must be float"):
        runner[1].run({"x": np.zeros((1, 2))})


def test_what_is_kept_stays_in_the_runtime(runner):
    kind, session = runner
    kept = session.empty_value((0, 2), kind)
    arrays, values = session.run_keeping({}, {"x": kept}, ["y"])
    assert arrays == {}
    assert values["y"].shape() == [0, 2]
    assert values["y"].data_type() == f"tensor({kind})"
