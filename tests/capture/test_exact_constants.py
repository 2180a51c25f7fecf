"""Constants near zero and one stay in the graph."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnxscript import optimizer

from moe_export.capture.exact_constants import _no_op_constants, exact_constants


def make_model(op_type, number):
    x = ir.Value(name="x", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.FLOAT))
    constant = ir.Value(name="c", const_value=ir.tensor(number, dtype=ir.DataType.FLOAT, name="c"))
    node = ir.Node("", op_type, [x, constant])
    node.outputs[0].type = x.type
    final = ir.Node("", "Sqrt", node.outputs)
    final.outputs[0].type = x.type
    graph = ir.Graph(
        [x], final.outputs, nodes=[node, final], initializers=[constant], opset_imports={"": 20}
    )
    return ir.Model(graph, ir_version=10)


def kinds(model):
    optimizer.optimize(model)
    return [node.op_type for node in model.graph]


NEAR = [("Add", 1e-8), ("Add", 1e-20), ("Sub", 1e-9), ("Mul", 1.000001), ("Div", 0.999999)]


@pytest.mark.parametrize(("op_type", "number"), NEAR)
def test_what_is_nearly_nothing_stays(op_type, number):
    with exact_constants():
        assert kinds(make_model(op_type, number)) == [op_type, "Sqrt"]


@pytest.mark.parametrize(("op_type", "number"), [("Add", 0.0), ("Mul", 1.0)])
def test_nothing_is_dropped(op_type, number):
    with exact_constants():
        assert kinds(make_model(op_type, number)) == ["Sqrt"]


def test_every_rule_is_found_and_put_back():
    before = [vars(constant).copy() for constant in _no_op_constants()]
    assert len(before) == 6
    with exact_constants():
        assert all(c._rel_tol == c._abs_tol == 0 for c in _no_op_constants())
    assert [vars(constant) for constant in _no_op_constants()] == before
