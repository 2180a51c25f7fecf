"""The graph that transformers' exporter writes for experts: one product per expert, unrolled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_bench.layers import Layer, Weights
from moe_bench.routing import Bind, Call
from moe_bench.sessions import bind_session, open_session
from moe_bench.torch_moe import grouped, load_weights

UNROLLED = "unrolled.onnx"


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
    return bind_session(open_session(export_unrolled(weights)), name_inputs)


def name_inputs(call: Call) -> dict[str, NDArray[Any]]:
    """The graph's inputs: ids are int64, as in transformers' models."""
    ids = call.expert_ids.astype(np.int64)
    return {"x": call.x, "ids": ids, "weights": call.expert_weights}


def export_unrolled(weights: Weights) -> Path:
    """The graph as a file, exported once for all who read it."""
    from transformers.exporters.exporter_onnx import _ONNX_TRANSLATION_TABLE

    path = weights.folder / UNROLLED
    if path.exists():
        return path
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
    converted.save(path, external_data=True)
    return path
