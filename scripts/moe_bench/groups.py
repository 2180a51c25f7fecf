"""Contenders that are in memory together: at most what fits, ours of the same width among them."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Sequence

from moe_bench.contenders import WEIGHT_BITS, Contender
from moe_bench.layers import Layer, Weights

# Of the machine's memory: the float32 weights, calls and PyTorch take some of the rest.
_SHARE = 0.45


def make_groups(
    contenders: Sequence[Contender], layer: Layer, memory: float | None = None
) -> list[list[Contender]]:
    """Contenders of one width each, as many as ``memory`` bytes hold, and at least one peer.

    Args:
        contenders: Who takes part.
        layer: Whose weights they hold.
        memory: What a group may take; about half of the machine's if left out.

    Returns:
        Groups in which ours of that width come first: ratios are taken within a group.
    """
    memory = memory or _SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    groups: list[list[Contender]] = []
    for width in WEIGHT_BITS:
        ours = [c for c in contenders if c.width == width and c.ours]
        group, peers = [*ours], 0
        for peer in (c for c in contenders if c.width == width and not c.ours):
            if peers and _held(layer, [*group, peer]) > memory:
                groups.append(group)
                group, peers = [*ours], 0
            group.append(peer)
            peers += 1
        if group:
            groups.append(group)
    return groups


def release(weights: Weights) -> None:
    """Return the memory of a group that nothing refers to any more, and delete its files."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for path in weights.folder.iterdir():
        if path.name not in ("up.bin", "down.bin"):
            path.unlink()
    weights.release_pages()


def _held(layer: Layer, group: Sequence[Contender]) -> float:
    values = layer.experts * layer.expert_values
    return sum(contender.copies * contender.stored_bytes(values) for contender in group)
