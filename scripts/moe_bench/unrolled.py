"""The graph that transformers' exporter writes for experts: one product per expert, unrolled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_bench.layers import Layer, Weights
from moe_bench.routing import Bind
from moe_bench.sessions import bind_session, open_session
from moe_bench.torch_moe import grouped, load_weights


class Experts(nn.Module):
    """Experts through ``grouped_mm``, as transformers computes them while it exports."""

    def __init__(self, layer: Layer, up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.up = nn.Parameter(up, requires_grad=False)
        self.down = nn.Parameter(down, requires_grad=False)

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """``[T, H]``, ``[T, K]`` and ``[T, K]`` to ``[T, H]``."""
        # transformers traces this operator where weights are not bfloat16.
        product = torch.ops.transformers.grouped_mm_fallback
        return grouped(self.layer, x, ids, weights, self.up, self.down, product)


def prepare(weights: Weights) -> Bind:
    """A session with transformers' translation of ``grouped_mm``."""
    from transformers.exporters.exporter_onnx import _ONNX_TRANSLATION_TABLE

    layer = weights.layer
    module = Experts(layer, *load_weights(weights, torch.float32))
    example = (
        torch.randn(11, layer.hidden),
        torch.randint(layer.experts, (11, layer.top_k)),
        torch.rand(11, layer.top_k),
    )
    program = torch.export.export(module, example, dynamic_shapes=({0: torch.export.Dim.AUTO},) * 3)
    converted = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["x", "ids", "weights"],
        custom_translation_table=_ONNX_TRANSLATION_TABLE,
        verbose=False,
    )
    assert converted is not None  # torch.onnx returns a program with dynamo
    path = weights.folder / "unrolled.onnx"
    converted.save(path, external_data=True)
    return bind_session(
        open_session(path),
        lambda c: {"x": c.x, "ids": c.expert_ids.astype("int64"), "weights": c.expert_weights},
    )
