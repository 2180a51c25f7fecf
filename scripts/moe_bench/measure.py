"""Interleaved rounds: every contender and every limit in turn, in one process; medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from moe_bench.contenders import Contender
from moe_bench.layers import Floats, Layer
from moe_bench.limits import dense_rate, median
from moe_bench.results import Refusal, Result
from moe_bench.routing import Bind, Case, Refused
from moe_export.benchmark.limits import Limits

# A contender's turn: as many calls as fit, at least one and at most this many.
_TURN_S, _TURN_CALLS = 0.1, 12
# A contender that has taken so long in a case gets no further turns in it.
_BUDGET_S = 1.0
# Where a call is so slow, the same one is made again and again, and nothing else warms up.
_SLOW_S = 1.0
# Where it is so slow, and so many times ours, the second call's time stands.
_HOPELESS_S, _HOPELESS_RATIO = 2.0, 4.0

Bound = tuple[Contender, Bind]


@dataclass
class _Entry:
    """A contender's calls, and what was measured of them."""

    contender: Contender
    runs: list[Callable[[], Floats]]
    error: float
    second_s: float
    times: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    used: float = 0

    @property
    def slow(self) -> bool:
        return self.second_s > _SLOW_S


def measure(
    layer: Layer, bound: Sequence[Bound], case: Case, rounds: int, limits: Limits
) -> tuple[list[Result], list[Refusal]]:
    """Time every contender of a group on one case, and say which refuse it."""
    entries, refusals = list[_Entry](), list[Refusal]()
    size = int(case.hit * layer.expert_values * 4)
    for contender, bind in bound:
        try:
            read = limits.read_bandwidth(size)
            entries.append(_warm(contender, bind, case))
            _give_up(entries[0], entries[-1], read)
        except Refused as refusal:
            said = (layer.name, case.tokens, contender.name, contender.width, str(refusal))
            refusals.append(Refusal(*said))
    dense = dense_rate(layer.hidden, torch.bfloat16)
    peaks, products = list[float](), list[float]()
    for turn in range(rounds):
        for entry in entries:
            if entry.used < _BUDGET_S:
                entry.reads.append(limits.read_bandwidth(size))
                _take_turn(entry, turn)
        limits.read_bandwidth(size)
        peaks.append(limits.multiply_rate("fp32")[0])
        products.append(dense())
    rates = {"fp32": median(peaks)}
    ours = next((entry for entry in entries if entry.contender.ours), None)
    return [
        _summarize(layer, case, entry, ours, rates.get(entry.contender.width, median(products)))
        for entry in entries
    ], refusals


def _warm(contender: Contender, bind: Bind, case: Case) -> _Entry:
    """Pages are mapped and kernels made before anything is timed; errors are taken on the way."""
    runs = [bind(call) for call in case.calls]
    y = runs[0]()
    error = float(np.abs(y - case.expected).max() / np.abs(case.expected).max())
    start = time.perf_counter()
    runs[0]()
    entry = _Entry(contender, runs, error, time.perf_counter() - start)
    if entry.slow:
        entry.runs = runs[:1]
    for run in entry.runs[1:]:
        run()
    return entry


def _give_up(ours: _Entry, entry: _Entry, read: float) -> None:
    """Let the second call stand where more of them would only take minutes."""
    if entry.second_s > max(_HOPELESS_S, _HOPELESS_RATIO * ours.second_s):
        entry.times, entry.reads, entry.used = [entry.second_s], [read], _BUDGET_S


def _take_turn(entry: _Entry, turn: int) -> None:
    """The median of some calls, one call after the first turn's."""
    begin = time.perf_counter()
    if not entry.slow:
        entry.runs[turn % len(entry.runs)]()
    found = list[float]()
    start = time.perf_counter()
    while not found or (len(found) < _TURN_CALLS and time.perf_counter() - start < _TURN_S):
        run = entry.runs[(turn + 1 + len(found)) % len(entry.runs)]
        before = time.perf_counter()
        run()
        found.append(time.perf_counter() - before)
    entry.times.append(median(found))
    entry.used += time.perf_counter() - begin


def _summarize(
    layer: Layer, case: Case, entry: _Entry, ours: _Entry | None, peak_rate: float
) -> Result:
    contender, times = entry.contender, entry.times
    stored = contender.stored_bytes(case.hit * layer.expert_values)
    operations = layer.operations(case.tokens)
    of_limit = [
        max(stored / read, operations / peak_rate) / taken
        for taken, read in zip(times, entry.reads, strict=True)
    ]
    # Rounds in which both took part: a slow one takes part in fewer.
    ratios = [] if ours is None else [a / b for a, b in zip(times, ours.times, strict=False)]
    return Result(
        layer=layer.name,
        tokens=case.tokens,
        skewed=case.skewed,
        contender=contender.name,
        width=contender.width,
        ours=contender.ours,
        seconds=median(times),
        ratio=median(ratios) if ratios else 0,
        error=entry.error,
        hit=case.hit,
        bytes_read=stored,
        operations=operations,
        read_rate=median(entry.reads),
        peak_rate=peak_rate,
        limit_share=median(of_limit),
    )
