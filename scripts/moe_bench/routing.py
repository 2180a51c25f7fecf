"""Tokens and their routing, uniform or skewed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_bench.layers import Floats, Layer, Weights

# Zipf's exponent: the most popular of 128 experts gets about a tenth of all choices.
_SKEW = 0.8
# Calls of a case by their tokens, 2 of all others.
_CALLS = {1: 16, 4: 16, 16: 6}


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    Attributes:
        x: ``[T, H]``.
        expert_ids: ``[T, K]`` int32.
        expert_weights: ``[T, K]``, each row adds up to 1.
    """

    x: Floats
    expert_ids: NDArray[np.int32]
    expert_weights: Floats

    @property
    def hit(self) -> int:
        """Distinct experts, whose weights have to be read."""
        return len(np.unique(self.expert_ids))


class Refused(Exception):  # noqa: N818 - no error: the table says it
    """A contender cannot compute this layer, or this call; its text says why."""


@dataclass(frozen=True)
class Case:
    """What is timed: calls of one kind that take turns.

    Attributes:
        tokens, skewed: Of every call.
        calls: Several, so that few tokens do not find their experts in the cache.
        expected: The first call's result in float64, ``[tokens, H]``.
    """

    tokens: int
    skewed: bool
    calls: tuple[Call, ...]
    expected: NDArray[np.float64]

    @property
    def hit(self) -> float:
        """Mean of the distinct experts of a call."""
        return float(np.mean([call.hit for call in self.calls]))


# Converts a call beforehand and returns what computes it.
Bind = Callable[[Call], Callable[[], Floats]]


def draw_call(layer: Layer, tokens: int, seed: int, *, skewed: bool = False) -> Call:
    """Random tokens whose experts are drawn without replacement, evenly or by Zipf's law."""
    generator = np.random.default_rng(seed)
    popularity = np.arange(1, layer.experts + 1, dtype=np.float64) ** -(_SKEW if skewed else 0.0)
    popularity = generator.permutation(popularity)
    # The K largest of log p + Gumbel noise are K draws without replacement.
    noise = generator.gumbel(size=(tokens, layer.experts)) + np.log(popularity)
    ids = np.argpartition(-noise, layer.top_k - 1, axis=1)[:, : layer.top_k].astype(np.int32)
    weights = generator.random((tokens, layer.top_k), dtype=np.float32) + np.float32(0.1)
    x = generator.standard_normal((tokens, layer.hidden), dtype=np.float32)
    return Call(x, ids, weights / weights.sum(axis=1, keepdims=True))


def draw_case(weights: Weights, tokens: int, *, skewed: bool) -> Case:
    """Calls of ``tokens`` tokens, and what the first of them comes to."""
    seeds = range(_CALLS.get(tokens, 2))
    calls = tuple(draw_call(weights.layer, tokens, seed, skewed=skewed) for seed in seeds)
    return Case(tokens, skewed, calls, exact(weights, calls[0]))


def exact(weights: Weights, call: Call) -> NDArray[np.float64]:
    """The layer's result in float64, ``[T, H]``."""
    y = np.zeros(call.x.shape)
    for expert in np.unique(call.expert_ids):
        tokens, places = np.nonzero(call.expert_ids == expert)
        share = call.expert_weights[tokens, places, None].astype(np.float64)
        # A token has an expert once: no two of its rows are added here.
        y[tokens] += share * weights.expert(call.x[tokens], int(expert))
    return y
