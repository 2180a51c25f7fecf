"""Interleaved rounds: every kind of run and every contender in turn, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moe_export.benchmark.cases import Case
from moe_export.benchmark.contenders import Contender
from moe_export.runners.arrays import Array

# The threads of the contender before go on spinning for a while.
_REST_S = 0.05
# A turn: as many runs as fit, at least one and at most this many.
_TURN_S, _TURN_RUNS = 0.5, 50
# Runs that are shorter than this are run once untimed, so that threads are awake.
_SHORT_S = 0.25

Key = tuple[str, str]


def time_runs(
    cases: Sequence[Case],
    contenders: Mapping[str, Contender],
    rounds: int,
    on_round: Callable[[int], None],
    profile: Callable[[Case, int], None],
) -> dict[Key, tuple[float, ...]]:
    """Time every contender on every case.

    Args:
        cases: What is run.
        contenders: By name.
        rounds: How often each has a turn, after one that warms up.
        on_round: Told the number of each round before it.
        profile: Called in each round with each case and the round's number, in a turn of its own.

    Returns:
        Seconds of the single runs by contender and case.
    """
    found: dict[Key, list[float]] = {}
    for number in range(rounds + 1):
        on_round(number)
        for case in cases:
            for name, contender in contenders.items():
                taken = found.setdefault((name, case.name), [])
                if number == 0:
                    _timed(contender, case, 0)
                else:
                    taken += _turn(contender, case, len(taken))
            if number > 0:
                rest()
                profile(case, number - 1)
    return {key: tuple(taken) for key, taken in found.items()}


def largest_difference(case: Case, contender: Contender, other: Contender) -> float:
    """How far the floating-point outputs of two contenders are apart.

    Returns:
        The largest difference over ``other``'s largest value, of the worst output, on the case's
        first inputs; infinite where shapes differ.
    """
    found, expected = (dict(c.prepare(case, 0)()) for c in (contender, other))
    worst = 0.0
    for name, array in expected.items():
        if name in found and np.issubdtype(array.dtype, np.floating) and array.size:
            worst = max(worst, _difference(found[name], array))
    return worst


def rest() -> None:
    """Wait until the threads of what ran before are idle."""
    time.sleep(_REST_S)


def _difference(found: Array, expected: Array) -> float:
    if found.shape != expected.shape:
        return float("inf")
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def _turn(contender: Contender, case: Case, first: int) -> list[float]:
    rest()
    begin = time.perf_counter()
    last = _timed(contender, case, first)
    found = [] if last < _SHORT_S else [last]
    while not found or (len(found) < _TURN_RUNS and time.perf_counter() - begin < _TURN_S):
        found.append(_timed(contender, case, first + 1 + len(found)))
    return found


def _timed(contender: Contender, case: Case, index: int) -> float:
    run = contender.prepare(case, index % len(case.inputs))
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
