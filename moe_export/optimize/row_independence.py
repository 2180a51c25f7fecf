"""Whether every value inside a router keeps the tokens apart.

Values inside are looked at, not only results: a count over tokens shows before it reaches the
capacity that it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moe_export.optimize.slice_run import SliceRun
from moe_export.runners.arrays import Array


def coupled_values(base: SliceRun, changed: SliceRun, kept: Array) -> set[str]:
    """Values in which a kept token differs though only other tokens' logits were changed.

    Args:
        base: A run.
        changed: The same with other logits in some rows.
        kept: ``[T]``, the rows whose logits are the same.
    """
    return {
        name
        for name, value in base.values.items()
        if not _keeps_apart(value, changed.values[name], kept, base.samples)
    }


def _keeps_apart(before: Array, after: Array, kept: Array, samples: int) -> bool:
    if before.shape != after.shape:
        return False
    differs = ~((before == after) | ((before != before) & (after != after)))
    if not differs.any():
        return True
    return any(not rows[kept].any() for rows in _by_token(differs, len(kept), samples))


def _by_token(differs: Array, tokens: int, samples: int) -> Iterator[Array]:
    """``[T]`` for every way in which the axes may hold the tokens."""
    shape = differs.shape
    for axis in range(differs.ndim):
        moved = np.moveaxis(differs, axis, 0)
        if shape[axis] % tokens == 0:
            yield _any(moved.reshape(tokens, -1))
            yield _any(moved.reshape(shape[axis] // tokens, tokens, -1).swapaxes(0, 1))
        if shape[axis : axis + 2] == (samples, tokens // samples):
            yield _any(np.moveaxis(differs, (axis, axis + 1), (0, 1)).reshape(tokens, -1))


def _any(differs: Array) -> Array:
    """Whether anything differs in each row."""
    rows: Array = differs.reshape(len(differs), -1).max(axis=1)
    return rows
