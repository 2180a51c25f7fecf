"""What ``bench_scaling.py`` compares is comparable, and its tables say what they should."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from bench_scaling import gating_table, growth_table
from moe_bench import scaling
from moe_bench.layers import Layer
from moe_bench.scaling import GATINGS, bind_experts, bind_gatings, time_in_turns

from moe_export.ops.reference import top_k_gating


@pytest.fixture
def small_layers(monkeypatch):
    monkeypatch.setattr(scaling, "TOKENS_LAYER", Layer("tokens", 64, 32, 64, 4))
    monkeypatch.setattr(scaling, "GATING_LAYER", Layer("gating", 64, 32, 256, 8))


def test_layers_of_any_size_are_hit_at_the_same_number_of_experts(
    small_layers, tmp_path, monkeypatch
):
    calls = {}

    def keep(folder, layer, weight_type):
        return lambda call: calls.setdefault(layer.experts, call)

    monkeypatch.setattr(scaling, "_prepare", keep)
    bind_experts(tmp_path, "bf16", [8, 32, 128])
    assert [call.hit for call in calls.values()] == [8, 8, 8]
    assert {experts: call.expert_ids.max() for experts, call in calls.items()} == {
        8: 7,
        32: 28,
        128: 112,
    }


def test_timed_routers_choose_as_the_reference(small_layers, tmp_path):
    runs = bind_gatings(tmp_path, "bf16", [5])
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((5, 256), dtype=np.float32)
    bias = generator.standard_normal(256, dtype=np.float32)
    for name, gating in GATINGS.items():
        given = bias if gating.has_selection_bias else None
        _, expected = top_k_gating(logits, gating, given)
        np.testing.assert_allclose(runs[name, 5](), expected, rtol=1e-5)
    assert runs["experts", 5]().shape == (5, 64)


def test_turns_alternate_and_the_cache_is_emptied_before_each_but_routers():
    seen = []
    runs = {(name, 1): lambda name=name: seen.append(name) for name in ("a", "b", "softmax")}
    times = time_in_turns(runs, 2, lambda: seen.append("empty"))
    turn = ["empty", "a", "empty", "b", "softmax", "softmax"]
    assert seen == ["a", "b", "softmax", *turn, *turn]
    assert all(seconds > 0 for seconds in times.values())


def test_tables_give_microseconds_per_token_and_shares():
    tokens = {("tokens", 100): 0.01, ("tokens", 200): 0.02}
    experts = {("experts", 8): 0.01, ("experts", 32): 0.02}
    lines = growth_table(tokens, experts).splitlines()
    assert "| 200 | 20.00 | 100.0 |" in lines
    assert "| 32 | 20.00 | 2.00 |" in lines
    shares = {("experts", 1): 0.97, **{(name, 1): 0.03 for name in GATINGS}}
    assert gating_table(shares).splitlines()[-1] == "| 1 | 3.0% | 3.0% |"
