"""Turns, budgets and refusals of the benchmark, with contenders that only count their calls."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from moe_bench import measure as measuring
from moe_bench.contenders import Contender
from moe_bench.layers import Layer, draw_weights
from moe_bench.measure import measure
from moe_bench.results import Refusal
from moe_bench.routing import Refused, draw_case

LAYER = Layer("small", 64, 32, 4, 2)


class FixedLimits:
    def read_bandwidth(self, size):
        return 1e9

    def multiply_rate(self, weight_type):
        return 1e9, "float32"


class Counting:
    """Binds calls that return zeros, and counts how often they run."""

    def __init__(self, refused=False):
        self.runs, self.refused = 0, refused

    def __call__(self, call):
        if self.refused:
            raise Refused("it would gather too much")

        def run():
            self.runs += 1
            return np.zeros_like(call.x)

        return run


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return draw_case(draw_weights(LAYER, tmp_path_factory.mktemp("weights")), 64, skewed=False)


@pytest.fixture(autouse=True)
def one_call_per_turn(monkeypatch):
    monkeypatch.setattr(measuring, "_TURN_CALLS", 1)


def contender(name, *, ours=False):
    return Contender(name, "fp32", lambda weights: None, ours=ours)


def test_every_contender_takes_part_in_every_round(case):
    ours, peer = Counting(), Counting()
    bound = [(contender("ours", ours=True), ours), (contender("peer"), peer)]
    results, refusals = measure(LAYER, bound, case, 3, FixedLimits())
    # The calls of the case once each, the first twice, and in each round one that is not timed and
    # one that is.
    assert ours.runs == peer.runs == len(case.calls) + 1 + 3 * 2
    assert [result.contender for result in results] == ["ours", "peer"]
    assert results[0].ratio == 1
    assert results[1].ratio > 0
    assert all(result.error == 1 for result in results)  # zeros
    assert refusals == []


def test_contender_whose_time_is_used_up_gets_no_more_turns(case, monkeypatch):
    monkeypatch.setattr(measuring, "_BUDGET_S", 1e-12)
    peer = Counting()
    measure(LAYER, [(contender("peer"), peer)], case, 5, FixedLimits())
    assert peer.runs == len(case.calls) + 1 + 2


def test_hopeless_contender_runs_twice_and_is_still_reported(case, monkeypatch):
    monkeypatch.setattr(measuring, "_SLOW_S", 0)
    monkeypatch.setattr(measuring, "_HOPELESS_S", 0)
    monkeypatch.setattr(measuring, "_HOPELESS_RATIO", 0)
    peer = Counting()
    (result,), _ = measure(LAYER, [(contender("peer"), peer)], case, 5, FixedLimits())
    assert peer.runs == 2
    assert result.seconds > 0


def test_refusal_is_reported_and_the_others_go_on(case):
    bound = [(contender("greedy"), Counting(refused=True)), (contender("peer"), Counting())]
    results, refusals = measure(LAYER, bound, case, 1, FixedLimits())
    assert [result.contender for result in results] == ["peer"]
    assert refusals == [Refusal("small", 64, "greedy", "fp32", "it would gather too much")]


def test_share_of_the_limit_is_that_of_the_slower_of_reading_and_computing(case):
    (result,), _ = measure(LAYER, [(contender("peer"), Counting())], case, 1, FixedLimits())
    least = max(result.bytes_read, result.operations) / 1e9
    assert result.limit_share == pytest.approx(least / result.seconds)
    assert result.bytes_read == 4 * case.hit * LAYER.expert_values
