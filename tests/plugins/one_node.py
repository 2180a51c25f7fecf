"""One-node models for the custom ops, and sessions that run them."""

from __future__ import annotations

import onnxruntime as ort
from onnx import TensorProto, helper

from moe_export.ops import spec
from moe_export.runners.library import ort_library_path

OUTPUT_TYPES = {
    "expert_ids": TensorProto.INT32,
    "expert_weights": TensorProto.FLOAT,
    "y": TensorProto.FLOAT,
    "rows": TensorProto.FLOAT,
    "row_map": TensorProto.INT32,
    "group_ends": TensorProto.INT32,
    "row_experts": TensorProto.INT32,
}


def _value_info(name, array):
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * array.ndim)


def _output_info(name, activations):
    """An output; ``rows`` and ``y`` have the type of half-precision activations."""
    kind = OUTPUT_TYPES[name]
    if name in ("rows", "y") and activations in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        kind = activations
    return helper.make_tensor_value_info(f"{name}_out", kind, None)


def make_model(op_type, attributes, inputs, left_out=()):
    """A model of one node whose inputs are the graph's; nothing about the node is checked.

    Inputs in ``left_out`` become empty slots of the node.
    """
    node_outputs = [f"{name}_out" for name in spec.OUTPUT_NAMES[op_type]]
    slots = ["" if name in left_out else name for name in inputs]
    node = helper.make_node(op_type, slots, node_outputs, domain=spec.DOMAIN, **attributes)
    activations = helper.np_dtype_to_tensor_dtype(next(iter(inputs.values())).dtype)
    outputs = [_output_info(name, activations) for name in spec.OUTPUT_NAMES[op_type]]
    graph = helper.make_graph(
        [node],
        "one_node",
        [_value_info(name, array) for name, array in inputs.items() if name not in left_out],
        outputs,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(spec.DOMAIN, spec.VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def make_session(op_type, attributes, inputs, *, num_threads=2, left_out=()):
    """A session with the library for ``make_model``'s model."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = num_threads
    options.register_custom_ops_library(str(ort_library_path()))
    model = make_model(op_type, attributes, inputs, left_out)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_node(op_type, attributes, inputs, **options):
    """The outputs of the one node on ``inputs``, arrays by name in the op's order."""
    return make_session(op_type, attributes, inputs, **options).run(None, inputs)
