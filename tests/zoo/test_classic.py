"""Each classic system against its paper's formula."""

from __future__ import annotations

import numpy as np
import pytest

from tests.zoo import oracles
from tests.zoo.catalog import CLASSIC
from tests.zoo.outputs import run

LAYERS = {layer.name: layer for layer in CLASSIC}


def arrays(tensors):
    return [t.double().numpy() if t.is_floating_point() else t.numpy() for t in tensors]


def close(found, expected):
    return np.abs(found - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1e-30)


def batches(name):
    layer = LAYERS[name]
    model = layer.make()
    for make in (layer.inputs, *layer.other_inputs):
        inputs = make()
        yield oracles.Weights(model), arrays(inputs), arrays(run(model, inputs))


@pytest.mark.parametrize("name", oracles.ORACLES)
def test_formula(name):
    for weights, inputs, (found, *_) in batches(name):
        assert close(found, oracles.ORACLES[name](weights, *inputs))


def test_switch_reports_what_it_drops():
    some = 0
    for weights, (x,), (found, dropped, loss) in batches("switch_top1_dict"):
        y, expected, expected_loss = oracles.switch(weights, x)
        assert close(found, y)
        assert (dropped == expected).all()
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert (found[expected] == x[expected]).all()
        some += expected.sum()
    assert some > 10
    for weights, (x,), (found, overflow, loss) in batches("switch_top1_tuple"):
        y, expected, expected_loss = oracles.switch(weights, x, minimum=4)
        assert close(found, y)
        assert overflow == expected.sum()
        assert loss == pytest.approx(expected_loss, rel=1e-5)


def test_noisy_top_k_loss():
    for weights, (x,), (_, loss) in batches("noisy_top_k_with_loss"):
        gates = np.zeros((len(x), 8))
        for t, logits in enumerate(x @ weights["w_gate"]):
            chosen = oracles.largest(logits, 3)
            gates[t, chosen] = oracles.softmax(logits[chosen])
        importance, load = gates.sum(0), (gates > 0).sum(0)
        expected = sum(v.var(ddof=1) / v.mean() ** 2 for v in (importance, load))
        assert loss == pytest.approx(expected, rel=1e-5)


def test_expert_choice_leaves_tokens_without_an_expert():
    for name in ("expert_choice_mesh", "expert_choice_vmoe"):
        assert any((found == 0).all(axis=-1).any() for _, _, (found, *_) in batches(name)), name


def test_gshard_drops_single_choices_and_whole_tokens():
    *_, (_, _, (found,)) = batches("gshard_top2")
    unlimited = LAYERS["gshard_top2"].make(capacity_factor=6.0)
    (full,) = arrays(run(unlimited, LAYERS["gshard_top2"].other_inputs[-1]()))
    lost_all = (found == 0).all(axis=-1)
    lost_one = ~lost_all & (np.abs(found - full).max(axis=-1) > 1e-6)
    assert lost_all.any()
    assert lost_one.any()
