"""OpenVINO with products per expert, as in models that were traced with a loop over experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from moe_bench.layers import Layer, Weights
from moe_bench.openvino_session import Width, bind_model, layer_inputs, stored_matrix
from moe_bench.routing import Bind

if TYPE_CHECKING:
    from openvino import Model, Node


def preparer(width: Width) -> Callable[[Weights], Bind]:
    """How to compile the layer, with each expert's matrices as constants of their own."""

    def prepare(weights: Weights) -> Bind:
        return bind_model(_build(weights, width), width)

    return prepare


class SortedRows:
    """Rows of tokens sorted by expert, in integers alone: bf16 would round their places."""

    def __init__(self, layer: Layer, x: Node, ids: Node) -> None:
        from openvino import opset16 as ops

        self._layer, first = layer, np.int64(0)
        flat = ops.reshape(ids, [-1], False)
        self._count = ops.squeeze(ops.shape_of(flat), first)
        chosen = ops.topk(flat, self._count, first, "min", "value", "i32", stable=True)
        self._order = chosen.output(1)
        experts = np.arange(layer.experts, dtype=np.int32)
        self.starts = ops.search_sorted(chosen.output(0), experts, right_mode=False)
        self.ends = ops.search_sorted(chosen.output(0), experts, right_mode=True)
        self.rows = ops.gather(x, ops.divide(self._order, np.int32(layer.top_k)), first)

    def combine(self, out: Node, weights: Node) -> Node:
        """The weighted sum per token of the experts' rows."""
        from openvino import opset16 as ops

        layer, first = self._layer, np.int64(0)
        back = ops.topk(self._order, self._count, first, "min", "value", "i32").output(1)
        shape = [-1, layer.top_k, layer.hidden]
        per_token = ops.reshape(ops.gather(out, back, first), shape, False)
        weighted = ops.multiply(per_token, ops.unsqueeze(weights, np.int64(2)))
        return ops.reduce_sum(weighted, np.int64(1), False)


def _build(weights: Weights, width: Width) -> Model:
    """``x``, ``ids`` and ``weights`` in, the experts' weighted sum out."""
    import openvino
    from openvino import opset16 as ops

    layer, inputs = weights.layer, layer_inputs(weights.layer)
    sorted_rows, first = SortedRows(layer, *inputs[:2]), np.int64(0)
    parts = []
    for expert in range(layer.experts):
        start, end = (
            ops.gather(each, [expert], first) for each in (sorted_rows.starts, sorted_rows.ends)
        )
        rows = ops.slice(sorted_rows.rows, start, end, [1], [0])
        halves = np.split(weights.up[expert], 2) if layer.gated else [weights.up[expert]]
        projected = [ops.matmul(rows, stored_matrix(half, width), False, True) for half in halves]
        if layer.gated:
            hidden = ops.multiply(ops.swish(projected[0]), projected[1])
        else:
            hidden = ops.relu(projected[0])
        down = stored_matrix(weights.down[expert], width)
        parts.append(ops.matmul(hidden, down, False, True))
    y = sorted_rows.combine(ops.concat(parts, 0), inputs[2])
    return openvino.Model([y], inputs, "moe")
