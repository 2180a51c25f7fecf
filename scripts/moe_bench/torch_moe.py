"""transformers' ways to compute experts in PyTorch: a loop, ``grouped_mm`` and ``batched_mm``."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor

from moe_bench.layers import Floats, Layer, Weights
from moe_bench.routing import Bind, Call, Refused

Way = Literal["eager", "grouped_mm", "batched_mm"]
Dtype = Literal["float32", "bfloat16"]
# Copies that batched_mm may make of weights; more would take the others' memory.
_GATHERED_MAX = 4 << 30


def preparer(way: Way, dtype: Dtype) -> Callable[[Weights], Bind]:
    """How to prepare one of them."""

    def prepare(weights: Weights) -> Bind:
        kind = getattr(torch, dtype)
        up, down = load_weights(weights, kind)
        compute = {"eager": _eager, "grouped_mm": grouped, "batched_mm": _batched}[way]

        def bind(call: Call) -> Callable[[], Floats]:
            if way == "batched_mm":
                _check_room(call.expert_ids.size * weights.layer.expert_values * kind.itemsize)
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
    """``up`` and ``down``, mapped from files that all who ask for a type share."""
    found = []
    for name, array in (("up", weights.up), ("down", weights.down)):
        path = weights.folder / f"{name}.bin"
        if dtype != torch.float32:
            path = weights.folder / f"{name}_{dtype}.bin"
            if not path.exists():
                _convert(array, path, dtype)
        flat = torch.from_file(str(path), size=math.prod(array.shape), dtype=dtype)
        found.append(flat.view(array.shape))
    return found[0], found[1]


def _convert(array: Floats, path: Path, dtype: torch.dtype) -> None:
    with path.open("wb") as file:
        for expert in array:
            converted = torch.from_numpy(np.array(expert)).to(dtype)
            converted.view(torch.int16).numpy().tofile(file)


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


def _check_room(gathered: int) -> None:
    if gathered > _GATHERED_MAX:
        raise Refused(f"would gather {gathered / 1e9:.0f} GB of weights")


def _batched(
    layer: Layer, x: Tensor, ids: Tensor, weights: Tensor, up: Tensor, down: Tensor
) -> Tensor:
    """A copy of its expert's weights for every row, and a batched product with each."""
    chosen = ids.flatten()
    rows = x.repeat_interleave(layer.top_k, dim=0)
    hidden = _inner(layer, torch.bmm(up[chosen], rows[..., None])[..., 0])
    out = torch.bmm(down[chosen], hidden[..., None])[..., 0] * weights.reshape(-1, 1)
    return out.view(-1, layer.top_k, layer.hidden).sum(1)


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
