"""Turns: who runs when, and what is kept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moe_export.benchmark import timing
from moe_export.benchmark.cases import Case
from moe_export.benchmark.results import Latency


class Recorded:
    """A contender that notes its runs and takes no time."""

    def __init__(self, name, log, output=1.0):
        self.name, self.log, self.output = name, log, output

    def prepare(self, case, index):
        def run():
            self.log.append((case.name, self.name, index))
            return {"y": np.array([self.output, -2.0])}

        return run


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(timing, "_REST_S", 0.0)
    monkeypatch.setattr(timing, "_TURN_RUNS", 3)


CASES = (Case("one", 1, ({}, {})), Case("many", 5, ({},)))


def test_contenders_take_turns_within_a_case(quick):
    log, rounds, profiled = [], [], []
    contenders = {name: Recorded(name, log) for name in ("a", "b")}
    found = timing.time_runs(
        CASES,
        contenders,
        2,
        rounds.append,
        lambda case, number: profiled.append((case.name, number)),
    )
    assert rounds == [0, 1, 2]
    turns = list(dict.fromkeys((case, name) for case, name, _ in log))
    assert turns == [("one", "a"), ("one", "b"), ("many", "a"), ("many", "b")]
    assert profiled == [("one", 0), ("many", 0), ("one", 1), ("many", 1)]
    assert {key: len(seconds) for key, seconds in found.items()} == {
        (name, case.name): 6 for name in ("a", "b") for case in CASES
    }


def test_sets_of_inputs_take_turns(quick):
    log = []
    timing.time_runs(CASES, {"a": Recorded("a", log)}, 2, lambda _: None, lambda *_: None)
    places = [index for case, _, index in log if case == "one"]
    assert all(a != b for a, b in itertools.pairwise(places[1:5]))
    assert {index for case, _, index in log if case == "many"} == {0}


def test_difference_is_relative_to_the_largest_value():
    ours, other = Recorded("a", [], 1.5), Recorded("b", [], 1.0)
    assert timing.largest_difference(CASES[0], ours, other) == pytest.approx(0.25)
    assert timing.largest_difference(CASES[0], other, other) == 0


def test_percentiles_are_of_all_runs():
    latency = Latency.of(tuple(i / 100 for i in range(101)))
    assert (latency.p50, latency.p90, latency.p99) == pytest.approx((0.5, 0.9, 0.99))
    assert latency.runs == 101
