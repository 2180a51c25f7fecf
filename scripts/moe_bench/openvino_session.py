"""OpenVINO's constants and sessions: two threads, and weights of every width."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from moe_bench.layers import Floats, Layer
from moe_bench.quantize import quantize_blocks
from moe_bench.routing import Bind, Call
from moe_bench.sessions import THREADS
from moe_export.quantize.int4 import pack_nibbles

if TYPE_CHECKING:
    from openvino import Model, Node

Width = Literal["fp32", "bf16", "int8", "int4"]
_BLOCK = 128


def layer_inputs(layer: Layer) -> list[Node]:
    """``x``, ``ids`` and ``weights`` of any number of tokens."""
    from openvino import opset16 as ops

    inputs = []
    for name, size in {"x": layer.hidden, "ids": layer.top_k, "weights": layer.top_k}.items():
        node = ops.parameter([-1, size], np.int32 if name == "ids" else np.float32, name=name)
        node.output(0).set_names({name})
        inputs.append(node)
    return inputs


def bind_model(model: Model, width: Width) -> Bind:
    """Compile a model of those inputs; only float32 weights are computed with in float32."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": THREADS,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32" if width == "fp32" else "bf16",
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def bind(call: Call) -> Callable[[], Floats]:
        inputs = {"x": call.x, "ids": call.expert_ids, "weights": call.expert_weights}

        def run() -> Floats:
            result: Floats = request.infer(inputs)[0]
            return result

        return run

    return bind


def stored_matrix(weight: Floats, width: Width) -> Node:
    """``[E, N, K]`` or ``[N, K]``, or its codes: int8 with a scale per row, int4 per block."""
    import openvino
    from openvino import opset16 as ops

    if width in ("fp32", "bf16"):
        return ops.constant(np.ascontiguousarray(weight))
    rows, columns = weight.shape[:-1], weight.shape[-1]
    block, bits = (columns, 8) if width == "int8" else (_BLOCK, 4)
    matrices = weight if weight.ndim == 3 else weight[None]
    pairs = [quantize_blocks(matrix, block, bits) for matrix in matrices]
    codes = np.stack([codes for codes, _ in pairs])
    scales = np.stack([scale for _, scale in pairs]).reshape(*rows, -1)
    if width == "int8":
        constant = ops.constant(codes.reshape(weight.shape))
        return ops.multiply(ops.convert(constant, "f32"), ops.constant(scales))
    tensor = openvino.Tensor(openvino.Type.i4, openvino.Shape([*scales.shape, _BLOCK]))
    nibbles = codes.view(np.uint8) & np.uint8(15)
    tensor.data.reshape(-1)[:] = pack_nibbles(nibbles).ravel()
    values = ops.convert(ops.constant(tensor), "f32")
    scaled = ops.multiply(values, ops.constant(scales[..., None]))
    return ops.reshape(scaled, list(weight.shape), False)
