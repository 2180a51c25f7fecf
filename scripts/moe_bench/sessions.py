"""One-node models with weights in files, and sessions of two threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from moe_bench.layers import Floats, Layer
from moe_bench.routing import Bind, Call
from moe_export.ops import spec

THREADS = 2


def external_weight(
    name: str, shape: Sequence[int], kind: int = TensorProto.FLOAT
) -> onnx.TensorProto:
    """An initializer that lies in ``NAME.bin`` beside the model."""
    tensor = TensorProto(name=name, data_type=kind, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    location = tensor.external_data.add()
    location.key, location.value = "location", f"{name}.bin"
    return tensor


def save_model(
    path: Path, node: onnx.NodeProto, layer: Layer, weights: Sequence[onnx.TensorProto]
) -> Path:
    """Save a model of one node: its inputs are those of the call that it has, its output ``y``."""
    sizes = {
        "x": (TensorProto.FLOAT, layer.hidden),
        "logits": (TensorProto.FLOAT, layer.experts),
        "ids": (TensorProto.INT32, layer.top_k),
        "weights": (TensorProto.FLOAT, layer.top_k),
    }
    inputs = [
        helper.make_tensor_value_info(name, kind, ["tokens", size])
        for name, (kind, size) in sizes.items()
        if name in node.input
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", layer.hidden])
    graph = helper.make_graph([node], "layer", inputs, [output], list(weights))
    opsets = [
        helper.make_opsetid("", 18),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid(spec.DOMAIN, spec.VERSION),
    ]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def open_session(path: Path, library: Path | None = None) -> ort.InferenceSession:
    """A session on the CPU whose threads do not spin between calls of other contenders."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def bind_session(
    session: ort.InferenceSession, name_inputs: Callable[[Call], Mapping[str, Any]]
) -> Bind:
    """Run a session on the inputs that are made of a call."""

    def bind(call: Call) -> Callable[[], Floats]:
        inputs = name_inputs(call)

        def run() -> Floats:
            result: Floats = session.run(None, inputs)[0]
            return result

        return run

    return bind
