"""ONNX Runtime's fused operators: where they are, and what is said where they fail."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from moe_export.capture.ort_fusions import fuse

fusions = pytest.importorskip("transformers.exporters.onnxruntime_fusions")


def make_model():
    """Two projections of one input, which the fusions make one."""
    import numpy as np

    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["T", 4]))
    nodes, weights = [], []
    for number, name in enumerate(("a", "b"), 1):
        weights_of = np.eye(4, dtype=np.float32) * number
        weight = ir.Value(name=name, const_value=ir.tensor(weights_of, name=name))
        weight.dtype, weight.shape = ir.DataType.FLOAT, ir.Shape([4, 4])
        node = ir.node("MatMul", [x, weight])
        node.outputs[0].name, node.outputs[0].dtype = f"{name}_y", ir.DataType.FLOAT
        node.outputs[0].shape = ir.Shape(["T", 4])
        nodes.append(node)
        weights.append(weight)
    graph = ir.Graph(
        [x],
        [node.outputs[0] for node in nodes],
        nodes=nodes,
        initializers=weights,
        opset_imports={"": 20},
    )
    return ir.Model(graph, ir_version=10)


def ops(model):
    return sorted(node.op_type for node in model.graph)


def test_projections_of_one_input_become_one():
    remarks = []
    assert ops(fuse(make_model(), "cpu", remarks.append)) == ["MatMul", "Split"]
    assert remarks == []


def test_portable_graph_stays_as_it_is():
    model = make_model()
    assert fuse(model, "portable", pytest.fail) is model
    assert ops(model) == ["MatMul", "MatMul"]


@pytest.mark.parametrize("error", [ValueError("no shape"), IndexError(3), RuntimeError("a pass")])
def test_failure_is_said_and_leaves_the_graph_whole(monkeypatch, error):
    def broken(model, target):
        model.graph.remove(list(model.graph)[1:], safe=False)  # half done
        raise error

    monkeypatch.setattr(fusions, "fuse_for_onnxruntime", broken)
    remarks = []
    model = fuse(make_model(), "cpu", remarks.append)
    assert ops(model) == ["MatMul", "MatMul"]
    (remark,) = remarks
    assert "stays in standard operators" in remark
    assert type(error).__name__ in remark
