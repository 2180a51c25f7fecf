"""Classic layers that drop tokens, counted by their own code beside the bundle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import moe_export
from tests.zoo.classic.gshard_top2 import GShardTop2
from tests.zoo.classic.switch_top1 import SwitchTop1
from tests.zoo.layer import settle

E, TOKENS = 6, (4, 12)


def switch_routing(layer, x):
    """Chosen experts ``[T, 1]`` with E where the capacity is used up, and the probabilities."""
    rows = x.reshape(-1, x.shape[-1])
    probability = layer.router(rows).softmax(-1)
    capacity = max(int(layer.capacity_factor * len(rows) / E), layer.min_capacity)
    taken, ids = [0] * E, []
    for expert in probability.argmax(-1).tolist():
        ids.append([expert if taken[expert] < capacity else E])
        taken[expert] += 1
    return np.array(ids), probability


def gshard_routing(layer, x):
    """``[T, 2]`` likewise: all first choices are placed before the second ones."""
    rows = x.reshape(-1, x.shape[-1])
    probability = layer.gate(rows).softmax(-1)
    capacity, chosen = layer.capacity(len(rows)), probability.topk(2).indices
    taken, ids = [0] * E, np.full(chosen.shape, E)
    for place in range(2):
        for token, expert in enumerate(chosen[:, place].tolist()):
            if taken[expert] < capacity:
                ids[token, place] = expert
            taken[expert] += 1
    return ids, probability


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "routing"),
    [
        (lambda: SwitchTop1(capacity_factor=0.75), switch_routing),
        (lambda: GShardTop2(capacity_factor=1.0), gshard_routing),
    ],
    ids=["switch top-1", "gshard top-2"],
)
def test_tokens_over_a_capacity_are_dropped(make, routing, tmp_path):
    torch.manual_seed(3)
    layer = settle(make())
    bundle = moe_export.build(layer, torch.randn(2, 5, 24), output=tmp_path / "b", telemetry=True)
    x = torch.randn(*TOKENS, 24)
    with torch.no_grad():
        ids, probability = routing(layer, x)
    [load] = bundle.expert_load({"x": x.numpy()})
    assert load.tokens_per_expert.tolist() == np.bincount(ids[ids < E], minlength=E).tolist()
    assert load.dropped_tokens == (ids == E).sum() > 0
    np.testing.assert_allclose(load.mean_probability, probability.mean(0), atol=1e-6)
    assert load.probability.startswith("softmax")
