"""OpenVINO: a layer as its users get it, which the CPU plugin turns into ``GatherMatmul``.

Gated layers are tiled over the experts as optimum-intel exports them; others hold the grouped
product that OpenVINO's PyTorch frontend makes of ``grouped_mm``. It also reads the graph that
transformers' exporter writes, with products per expert, which is faster with many tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from moe_bench.layers import Floats, Layer, Weights
from moe_bench.quantize import pack_nibbles, quantize_blocks
from moe_bench.routing import Bind, Call
from moe_bench.sessions import THREADS
from moe_bench.unrolled import export_unrolled, name_inputs

if TYPE_CHECKING:
    from openvino import Model, Node

Width = Literal["fp32", "bf16", "int8", "int4"]
_BLOCK = 128


def preparer(width: Width) -> Callable[[Weights], Bind]:
    """How to compile the fused layer."""

    def prepare(weights: Weights) -> Bind:
        def name_inputs(call: Call) -> dict[str, Any]:
            return {"x": call.x, "ids": call.expert_ids, "weights": call.expert_weights}

        return _bind(_build(weights, width), width, name_inputs)

    return prepare


def unrolled_preparer(width: Width) -> Callable[[Weights], Bind]:
    """How to compile the graph that transformers' exporter writes."""

    def prepare(weights: Weights) -> Bind:
        import openvino

        model = openvino.Core().read_model(export_unrolled(weights))
        return _bind(model, width, name_inputs)

    return prepare


def _bind(model: Model, width: Width, inputs_of: Callable[[Call], dict[str, Any]]) -> Bind:
    """Compile for two threads; only float32 weights are computed with in float32."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": THREADS,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32" if width == "fp32" else "bf16",
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def bind(call: Call) -> Callable[[], Floats]:
        inputs = inputs_of(call)

        def run() -> Floats:
            result: Floats = request.infer(inputs)[0]
            return result

        return run

    return bind


def _build(weights: Weights, width: Width) -> Model:
    """``x``, ``ids`` and ``weights`` in, the experts' weighted sum out."""
    import openvino
    from openvino import opset16 as ops

    layer = weights.layer
    sizes = {"x": layer.hidden, "ids": layer.top_k, "weights": layer.top_k}
    inputs = []
    for name, size in sizes.items():
        node = ops.parameter([-1, size], np.int32 if name == "ids" else np.float32, name=name)
        node.output(0).set_names({name})
        inputs.append(node)
    down = _matrix(weights.down, width)
    if layer.gated:
        gate = _matrix(weights.up[:, : layer.intermediate], width)
        up = _matrix(weights.up[:, layer.intermediate :], width)
        y = _tiled(layer, *inputs, gate, up, down)
    else:
        y = _grouped(layer, *inputs, _matrix(weights.up, width), down)
    return openvino.Model([y], inputs, "moe")


def _tiled(
    layer: Layer, x: Node, ids: Node, weights: Node, gate: Node, up: Node, down: Node
) -> Node:
    """Every expert on every token; the plugin leaves out what ``ids`` does not choose."""
    from openvino import opset4
    from openvino import opset16 as ops

    experts = layer.experts
    tiled = ops.tile(ops.reshape(x, [-1, layer.hidden], False), [experts, 1])
    rows = ops.reshape(tiled, [experts, -1, layer.hidden], False)
    # The fusion knows Swish with one input only.
    active = opset4.swish(ops.matmul(rows, gate, False, True))
    hidden = ops.multiply(active, ops.matmul(rows, up, False, True))
    out = ops.reshape(ops.matmul(hidden, down, False, True), [experts, -1, layer.hidden], False)
    tokens = ops.gather(ops.shape_of(ids), [0], np.int64(0))
    dense = ops.broadcast(np.float32(0), ops.concat([tokens, np.array([experts])], 0))
    dense = ops.transpose(ops.scatter_elements_update(dense, ids, weights, np.int64(1)), [1, 0])
    share = ops.reshape(dense, ops.concat([np.array([experts]), tokens], 0), False)
    weighted = ops.multiply(out, ops.unsqueeze(share, np.int64(2)))
    return ops.reduce_sum(weighted, np.int64(0), False)


def _grouped(layer: Layer, x: Node, ids: Node, weights: Node, up: Node, down: Node) -> Node:
    """Rows sorted by expert, as transformers computes them with ``grouped_mm``; ungated."""
    from openvino import opset16 as ops
    from openvino.opset17 import grouped_matmul

    first = np.int64(0)
    flat = ops.reshape(ids, [-1], False)
    count = ops.squeeze(ops.shape_of(flat), first)
    chosen = ops.topk(flat, count, first, "min", "value", "i32", stable=True)
    order = chosen.output(1)
    experts = np.arange(layer.experts, dtype=np.int32)
    ends = ops.search_sorted(chosen.output(0), experts, right_mode=True)
    rows = ops.gather(x, ops.divide(order, np.int32(layer.top_k)), first)
    hidden = ops.relu(grouped_matmul(rows, up, ends))
    out = grouped_matmul(hidden, down, ends)
    back = ops.topk(order, count, first, "min", "value", "i32").output(1)
    per_token = ops.reshape(ops.gather(out, back, first), [-1, layer.top_k, layer.hidden], False)
    weighted = ops.multiply(per_token, ops.unsqueeze(weights, np.int64(2)))
    return ops.reduce_sum(weighted, np.int64(1), False)


def _matrix(weight: Floats, width: Width) -> Node:
    """``[E, N, K]`` as a constant, or as codes (int8: one scale per row, int4: per block)."""
    import openvino
    from openvino import opset16 as ops

    if width in ("fp32", "bf16"):
        return ops.constant(np.ascontiguousarray(weight))
    block, bits = (weight.shape[2], 8) if width == "int8" else (_BLOCK, 4)
    pairs = [quantize_blocks(expert, block, bits) for expert in weight]
    codes = np.stack([codes for codes, _ in pairs])
    scales = np.stack([scale for _, scale in pairs])
    if width == "int8":
        return ops.multiply(ops.convert(ops.constant(codes), "f32"), ops.constant(scales))
    blocks = [*scales.shape, _BLOCK]
    tensor = openvino.Tensor(openvino.Type.i4, openvino.Shape(blocks))
    tensor.data.reshape(-1)[:] = pack_nibbles(codes.view(np.uint8) & 15).view(np.int8).ravel()
    constant = ops.constant(tensor)
    values = ops.multiply(ops.convert(constant, "f32"), ops.constant(scales[..., None]))
    return ops.reshape(values, list(weight.shape), False)
