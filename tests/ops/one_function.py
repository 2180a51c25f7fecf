"""One-node models whose op is a function of standard operators, run without the library."""

from __future__ import annotations

import onnx_ir as ir
import onnxruntime as ort

from moe_export.ops import spec
from moe_export.ops.portable import OPSET, function_body

OUTPUT_TYPES = {
    "expert_ids": ir.DataType.INT32,
    "expert_weights": ir.DataType.FLOAT,
    "y": ir.DataType.FLOAT,
    "rows": ir.DataType.FLOAT,
    "row_map": ir.DataType.INT32,
    "group_ends": ir.DataType.INT32,
    "row_experts": ir.DataType.INT32,
}
RANKS = {"group_ends": 1, "row_experts": 1}


def _output(name):
    shape = ir.Shape([None] * RANKS.get(name, 2))
    return ir.Value(name=f"{name}_out", type=ir.TensorType(OUTPUT_TYPES[name]), shape=shape)


def make_model(attributes, inputs):
    """A model of one node with its body beside it."""
    values = [
        ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape([None] * array.ndim),
        )
        for name, array in inputs.items()
    ]
    outputs = [_output(name) for name in spec.OUTPUT_NAMES[attributes.op_type]]
    node = ir.node(
        attributes.op_type,
        values,
        attributes=attributes.to_onnx(),
        domain=spec.DOMAIN,
        outputs=outputs,
    )
    graph = ir.Graph(
        values,
        outputs,
        nodes=[node],
        name="one_node",
        opset_imports={"": OPSET, spec.DOMAIN: spec.VERSION},
    )
    return ir.Model(graph, ir_version=10, functions=[function_body(attributes)])


def run_function(attributes, inputs):
    """The outputs of the one node on ``inputs``, arrays by name in the op's order."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    model = ir.to_proto(make_model(attributes, inputs)).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))
