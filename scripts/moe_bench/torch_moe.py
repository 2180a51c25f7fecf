"""transformers' ways to compute experts in PyTorch: a loop over experts, and ``grouped_mm``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor

from moe_bench.layers import Floats, Layer, Weights
from moe_bench.routing import Bind, Call

Way = Literal["eager", "grouped_mm"]
Dtype = Literal["float32", "bfloat16"]


def preparer(way: Way, dtype: Dtype) -> Callable[[Weights], Bind]:
    """How to prepare one of them."""

    def prepare(weights: Weights) -> Bind:
        kind = getattr(torch, dtype)
        up, down = load_weights(weights, kind)
        compute = _eager if way == "eager" else grouped

        def bind(call: Call) -> Callable[[], Floats]:
            x = torch.from_numpy(call.x).to(kind)
            expert_weights = torch.from_numpy(call.expert_weights).to(kind)
            ids = torch.from_numpy(call.expert_ids).long()

            def run() -> Floats:
                with torch.no_grad():
                    y = compute(weights.layer, x, ids, expert_weights, up, down)
                result: Floats = y.float().numpy()
                return result

            return run

        return bind

    return prepare


def load_weights(weights: Weights, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``up`` and ``down``: float32 mapped from the files, other types in memory."""
    layer = weights.layer
    shapes = {
        "up": (layer.experts, layer.up_rows, layer.hidden),
        "down": (layer.experts, layer.hidden, layer.intermediate),
    }
    mapped = [
        torch.from_file(str(weights.folder / f"{name}.bin"), size=math.prod(shape)).view(shape)
        for name, shape in shapes.items()
    ]
    up, down = (tensor.to(dtype) for tensor in mapped)
    return up, down


def _inner(layer: Layer, projected: Tensor) -> Tensor:
    if not layer.gated:
        return F.relu(projected)
    gate, up = projected.chunk(2, dim=-1)
    return F.silu(gate) * up


def _eager(
    layer: Layer, x: Tensor, ids: Tensor, weights: Tensor, up: Tensor, down: Tensor
) -> Tensor:
    y = torch.zeros_like(x)
    for expert in ids.unique().tolist():
        token, slot = torch.where(ids == expert)
        hidden = _inner(layer, F.linear(x[token], up[expert]))
        y.index_add_(0, token, F.linear(hidden, down[expert]) * weights[token, slot, None])
    return y


def grouped(
    layer: Layer,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    up: Tensor,
    down: Tensor,
    product: Callable[..., Tensor] = F.grouped_mm,
) -> Tensor:
    """Rows sorted by expert, one grouped product each way, and the weighted sum."""
    flat = ids.flatten()
    order = flat.argsort()
    count = torch.histc(flat.float(), bins=layer.experts, min=0, max=layer.experts - 1)
    ends = count.cumsum(0).int()
    rows = x[order // layer.top_k]
    hidden = _inner(layer, product(rows, up.transpose(-2, -1), offs=ends))
    out = product(hidden, down.transpose(-2, -1), offs=ends)
    out = out * weights.flatten()[order, None]
    return out[order.argsort()].view(-1, layer.top_k, layer.hidden).sum(1)
