"""Prove a lowered layer against eager on probe inputs before it replaces anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.block import MoeBlock, Proof, Route, evaluate_lowered
from moe_export.tolerances import LAYER_TOLERANCE, relative_error

_PROBE_COUNTS = (1, 3, 17, 64, 256)
# Tokens that all go to one choice of experts: more than an expert's usual capacity.
_CROWD = 1024
_SEARCH_ROWS = 4096


def covering_rows(
    route: Route, num_experts: int, like: Tensor, directions: Tensor | None = None
) -> Tensor:
    """Rows ``[N, H]`` that together reach as many experts as a search finds.

    Args:
        route: The lowered router.
        num_experts: Experts to reach.
        like: Rows whose spread the search starts from.
        directions: Rows that favour one expert each, such as the gate's own weights.
    """
    generator = torch.Generator().manual_seed(1)
    spread = float(like.std(correction=0)) or 1.0
    missing, kept = set(range(num_experts)), []
    for factor in (1.0, 4.0, 16.0):
        random = torch.randn(_SEARCH_ROWS, like.shape[-1], generator=generator)
        pool = [random * spread * factor]
        if directions is not None:
            unit = directions / directions.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            pool.append(unit * spread * factor * like.shape[-1] ** 0.5)
        rows = torch.cat(pool)
        with torch.no_grad():
            ids = route(rows)[0]
        for row, chosen in zip(rows, ids.tolist(), strict=True):
            if missing.intersection(chosen):
                missing.difference_update(chosen)
                kept.append(row)
        if not missing:
            break
    return torch.stack(kept) if kept else like[:1]


def probe_inputs(like: Tensor, rows: Tensor) -> list[Tensor]:
    """Inputs of the layer, shaped as ``like``, that show what it does.

    Several token counts; ``rows``, which reach every expert; and crowds of nearly equal tokens, of
    which a layer with a capacity would drop most.
    """
    generator = torch.Generator().manual_seed(2)
    spread = float(like.std(correction=0)) or 1.0
    width = like.shape[-1]
    batched = like.dim() == 3
    probes = [like, rows.reshape(1, -1, width) if batched else rows]
    for count in _PROBE_COUNTS:
        shape = (2, count, width) if batched else (count, width)
        probes.append(torch.randn(shape, generator=generator) * spread)
    for row in (rows[0], rows[-1]):
        shape = (2, _CROWD // 2, width) if batched else (_CROWD, width)
        probes.append(row + torch.randn(shape, generator=generator) * spread * 1e-3)
    return probes


def check_repeatable(path: str, module: nn.Module, x: Tensor) -> Tensor:
    """The layer's output on ``x``, which must be the same twice.

    Raises:
        UnsupportedModelError: eager gives two answers to one input in eval mode.
    """
    with torch.no_grad():
        first: Tensor = module(x)
        second = module(x)
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise UnsupportedModelError(
            f"{path or '<root>'}: eager gives two answers to one input in eval mode: it draws "
            "random numbers or keeps state between calls"
        )
    return first


def prove_layer(block: MoeBlock, probes: Sequence[Tensor]) -> MoeBlock:
    """Compare a whole layer with eager on every probe; return it with its proof.

    Raises:
        UnsupportedModelError: outputs differ, or eager's own output changes between two calls.
    """
    reached: set[int] = set()
    worst = 0.0
    for x in probes:
        expected = check_repeatable(block.path, block.module, x)
        error = relative_error(evaluate_lowered(block, x).numpy(), expected.numpy())
        if not error <= LAYER_TOLERANCE:
            raise UnsupportedModelError(
                f"{block.path or '<root>'} ({type(block.module).__name__}): the {block.kind} form "
                f"differs from eager by {error:.1e} of the largest output on {list(x.shape)} "
                f"(allowed {LAYER_TOLERANCE:.0e})"
            )
        worst = max(worst, error)
        if block.route is not None:
            with torch.no_grad():
                reached.update(block.route(x.reshape(-1, x.shape[-1]))[0].unique().tolist())
    within = [e for e in reached if 0 <= e - block.experts.first_expert < block.experts.num_experts]
    counts = tuple(sorted({x.numel() // x.shape[-1] for x in probes}))
    return dataclasses.replace(block, proof=Proof(counts, len(within), worst))
