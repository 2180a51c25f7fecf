"""OpenVINO's fused experts: what its CPU plugin turns into ``GatherMatmul``.

Gated layers are tiled over the experts as optimum-intel exports them; others hold the grouped
product that OpenVINO's PyTorch frontend makes of ``grouped_mm``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from moe_bench.layers import Layer, Weights
from moe_bench.openvino_session import Width, bind_model, layer_inputs, stored_matrix
from moe_bench.openvino_unrolled import SortedRows
from moe_bench.routing import Bind

if TYPE_CHECKING:
    from openvino import Model, Node


def preparer(width: Width) -> Callable[[Weights], Bind]:
    """How to compile the layer."""

    def prepare(weights: Weights) -> Bind:
        return bind_model(_build(weights, width), width)

    return prepare


def _build(weights: Weights, width: Width) -> Model:
    """``x``, ``ids`` and ``weights`` in, the experts' weighted sum out."""
    import openvino

    layer = weights.layer
    x, ids, routed = inputs = layer_inputs(layer)
    down = stored_matrix(weights.down, width)
    if layer.gated:
        gate = stored_matrix(weights.up[:, : layer.intermediate], width)
        up = stored_matrix(weights.up[:, layer.intermediate :], width)
        y = _tiled(layer, x, ids, routed, gate, up, down)
    else:
        y = _grouped(layer, x, ids, routed, stored_matrix(weights.up, width), down)
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

    rows = SortedRows(layer, x, ids)
    hidden = ops.relu(grouped_matmul(rows.rows, up, rows.ends))
    return rows.combine(grouped_matmul(hidden, down, rows.ends), weights)
