"""Interleaved rounds: every contender and every limit in turn, in one process; medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from moe_bench.contenders import WEIGHT_BITS, Contender
from moe_bench.layers import Floats, Weights
from moe_bench.limits import Limits, dense_rate, median
from moe_bench.routing import Bind, Call, draw_call, exact

# Calls that take turns, so that few tokens do not find their experts in the cache.
_CALLS = {1: 16, 4: 16, 16: 6}
_EXACT_TOKENS = 4
# Reading for so long lets the threads of others come to rest, and the memory reach its speed.
_SETTLE_S = 0.04
# A contender's turn: as many calls as fit, at least one and at most this many.
_TURN_S, _TURN_CALLS = 0.1, 12


@dataclass(frozen=True)
class Result:
    """One contender on one kind of call.

    Attributes:
        layer, tokens, skewed: What was computed.
        contender, width, ours: By whom.
        seconds: Median over rounds of the median of a turn's calls.
        hit: Mean of the distinct experts of a call.
        read_share: Bytes of the hit experts per second, by the read bandwidth just before.
        peak_share: Operations per second by the float32 peak, or by PyTorch's dense bf16 product.
        error: Largest difference from float64, by the largest value.
    """

    layer: str
    tokens: int
    skewed: bool
    contender: str
    width: str
    ours: bool
    seconds: float
    hit: float
    read_share: float
    peak_share: float
    error: float


def measure(
    weights: Weights,
    bound: Sequence[tuple[Contender, Bind]],
    tokens: int,
    rounds: int,
    limits: Limits,
    *,
    skewed: bool,
) -> list[Result]:
    """Time every contender at one number of tokens."""
    layer = weights.layer
    calls = [draw_call(layer, tokens, seed, skewed=skewed) for seed in range(_CALLS.get(tokens, 2))]
    runs = [[bind(call) for call in calls] for _, bind in bound]
    errors = [_error(weights, calls[0], of_one[0]) for of_one in runs]
    for of_one in runs:  # pages are mapped, and kernels chosen, before anything is timed
        for run in of_one:
            run()
    hit = float(np.mean([call.hit for call in calls]))
    dense = dense_rate(layer.hidden, torch.bfloat16)
    times: list[list[float]] = [[] for _ in bound]
    reads: list[list[float]] = [[] for _ in bound]
    peaks, products = list[float](), list[float]()
    size = int(hit * layer.expert_values * 4)
    for turn in range(rounds):
        for of_one, taken, read in zip(runs, times, reads, strict=True):
            read.append(_settled_read(limits, size))
            of_one[turn % len(calls)]()
            taken.append(median(_turn(of_one, turn)))
        _settled_read(limits, size)
        peaks.append(limits.fp32_peak())
        products.append(dense())
    found = []
    for (contender, _), taken, read, error in zip(bound, times, reads, errors, strict=True):
        stored = hit * layer.expert_values * WEIGHT_BITS[contender.width] / 8
        shares = [stored / s / rate for s, rate in zip(taken, read, strict=True)]
        rate = median(peaks if contender.width == "fp32" else products)
        seconds = median(taken)
        found.append(
            Result(
                layer.name,
                tokens,
                skewed,
                contender.name,
                contender.width,
                contender.ours,
                seconds,
                hit,
                median(shares),
                layer.operations(tokens) / seconds / rate,
                error,
            )
        )
    return found


def _settled_read(limits: Limits, size: int) -> float:
    """Bytes per second of the last of some reads."""
    begin = time.perf_counter()
    rate = limits.read(size)
    while time.perf_counter() - begin < _SETTLE_S:
        rate = limits.read(size)
    return rate


def _turn(runs: Sequence[Callable[[], Floats]], first: int) -> list[float]:
    found = list[float]()
    begin = time.perf_counter()
    while not found or (len(found) < _TURN_CALLS and time.perf_counter() - begin < _TURN_S):
        run = runs[(first + 1 + len(found)) % len(runs)]
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def _error(weights: Weights, call: Call, run: Callable[[], Floats]) -> float:
    tokens = min(_EXACT_TOKENS, len(call.x))
    expected = exact(weights, call, tokens)
    return float(np.abs(run()[:tokens] - expected).max() / np.abs(expected).max())
