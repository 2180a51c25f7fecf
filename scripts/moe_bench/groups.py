"""Contenders that are in memory together: at most what fits, ours of the same width among them."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterable, Sequence

from moe_bench.contenders import WEIGHT_BITS, Contender
from moe_bench.layers import Layer, Weights
from moe_bench.results import Refusal

# Of the machine's memory: the float32 weights, calls and PyTorch take some of the rest. A contender
# beside ours may take more, since what it does not use any more can be paged out.
_SHARE, _MOST = 0.55, 0.85


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
    memory = memory or _SHARE * _machine_bytes()
    groups: list[list[Contender]] = []
    for width in WEIGHT_BITS:
        ours = [c for c in contenders if c.width == width and c.ours]
        of_width: list[list[Contender]] = []
        for peer in (c for c in contenders if c.width == width and not c.ours):
            with_room = (group for group in of_width if _held(layer, [*group, peer]) <= memory)
            group = next(with_room, None)
            if group is None:
                of_width.append([*ours, peer])
            else:
                group.append(peer)
        groups += of_width or ([ours] if ours else [])
    return groups


def leave_out(
    contenders: Sequence[Contender], layer: Layer, memory: float | None = None
) -> tuple[list[Contender], list[Refusal]]:
    """Contenders that fit into ``memory`` bytes beside ours, and why the others do not take part.

    Args:
        contenders: Who wants to.
        layer: Whose weights they hold.
        memory: What both may take; most of the machine's if left out.
    """
    memory = memory or _MOST * _machine_bytes()
    fitting, refusals = list[Contender](), list[Refusal]()
    for contender in contenders:
        ours = [c for c in contenders if c.ours and c.width == contender.width][:1]
        held = _held(layer, {*ours, contender})
        if held <= memory:
            fitting.append(contender)
            continue
        reason = f"would hold {_held(layer, [contender]) / 1e9:.0f} GB"
        refusals.append(Refusal(layer.name, 0, contender.name, contender.width, reason))
    return fitting, refusals


def release(weights: Weights) -> None:
    """Return the memory of a group that nothing refers to any more, and delete its files."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for path in weights.folder.iterdir():
        if path.name not in ("up.bin", "down.bin"):
            path.unlink()
    weights.release_pages()


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _held(layer: Layer, group: Iterable[Contender]) -> float:
    values = layer.experts * layer.expert_values
    return sum(contender.copies * contender.stored_bytes(values) for contender in group)
