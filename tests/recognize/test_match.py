"""Experts planted in a layer are found; experts that are a little off are not."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from moe_export.recognize.candidates import Candidates
from moe_export.recognize.expert_modules import bank_of_modules
from moe_export.recognize.match import find_matches
from moe_export.recognize.program import Alignment
from moe_export.recognize.routing import DenseRouting, PairRouting
from moe_export.recognize.trace import trace_layer
from tests.recognize.common import layer_call, rows
from tests.recognize.layers import E, H
from tests.recognize.routed import Routed

POINTS = [(13,), (24,), (37,)]


def candidates_of(layer):
    call = layer_call(layer, rows(9))
    traces = [trace_layer(call, [rows(*point, seed=point[0])]) for point in POINTS]
    return Candidates(Alignment(traces, POINTS))


def matches(layer, change=None):
    """Matches of the layer's experts, after the bank's tensors were changed."""
    torch.manual_seed(0)
    layer = layer()
    candidates = candidates_of(layer)
    bank = bank_of_modules("experts", list(layer.experts), H)
    if change is not None:
        tensors = {name: tensor.clone() for name, tensor in bank.tensors.items()}
        change(tensors)
        bank = type(bank)(**{**vars(bank), "tensors": tensors})
    return list(itertools.islice(find_matches(candidates, bank), 4)), candidates


def read(match, candidates, trace=1):
    """Dense weights that a match's routing gives."""
    alignment, n = candidates.alignment, candidates.tokens[trace]
    values = [alignment.tensor(v, trace) for v in match.routing.values]
    ids, weights = match.routing.read(values, alignment.points[trace], n, E)
    dense = torch.zeros(n, E + 1)
    return dense.scatter_add(1, ids, weights)[:, :E]


def expected_weights(layer, x):
    with torch.no_grad():
        weights, ids = layer.route(x)
    return torch.zeros(len(x), E).scatter(1, ids, weights)


class DenseMask(Routed):
    def forward(self, x):
        scores = self.scores(x)
        return self.dense(x, scores * (scores > 0.2))


class Renormalized(Routed):
    def route(self, x):
        weights, ids = super().route(x)
        return weights / weights.sum(-1, keepdim=True), ids


class Factor(Routed):
    """The constant is applied among the experts, where no value by token holds it."""

    def combine(self, x, weights, ids):
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = (ids == e).nonzero(as_tuple=True)
            out.index_add_(0, token, 2.5 * weights[token, slot, None] * expert(x[token]))
        return out


class Normed(Routed):
    """Experts get other rows than the gate."""

    def combine(self, x, weights, ids):
        return super().combine(F.layer_norm(x, (H,)), weights, ids)


class Plus(Routed):
    def forward(self, x):
        return torch.tanh(super().forward(x) + x)


@pytest.mark.parametrize("layer", [Routed, Renormalized, Normed, Plus])
def test_planted_routing_is_found(layer):
    (first, *_), candidates = matches(layer)
    torch.manual_seed(0)
    weights = expected_weights(layer(), rows(24, seed=24))
    torch.testing.assert_close(read(first, candidates), weights)
    assert isinstance(first.routing, PairRouting)
    assert not first.idle


def test_planted_mask_is_found():
    (first, *_), candidates = matches(DenseMask)
    assert isinstance(first.routing, DenseRouting)
    torch.manual_seed(0)
    with torch.no_grad():
        scores = DenseMask().scores(rows(24, seed=24))
    torch.testing.assert_close(read(first, candidates), scores * (scores > 0.2))


def test_planted_factor_is_found():
    (first, *_), _ = matches(Factor)
    assert first.routing.factor == 2.5


def test_planted_rows_are_found():
    (first, *_), candidates = matches(Normed)
    found = candidates.alignment.tensor(first.rows, 1)
    torch.testing.assert_close(found, F.layer_norm(rows(24, seed=24), (H,)))
    (first, *_), candidates = matches(Routed)
    torch.testing.assert_close(candidates.alignment.tensor(first.rows, 1), rows(24, seed=24))


def test_planted_sum_is_found_in_every_trace():
    (first, *_), candidates = matches(Plus)
    torch.manual_seed(0)
    layer = Plus()
    for n, trace in enumerate(candidates.alignment.traces):
        x = rows(*POINTS[n], seed=POINTS[n][0])
        with torch.no_grad():
            total = layer.combine(x, *layer.route(x))
        assert first.sums[n]
        for number in first.sums[n]:
            found = trace.values[number].tensor.reshape(total.shape)
            torch.testing.assert_close(found, total, rtol=1e-4, atol=1e-5)


def scale(name, factor, expert):
    def change(tensors):
        tensors[name][expert] *= factor

    return change


def roll(tensors):
    for name in tensors:
        tensors[name] = tensors[name].roll(1, 0)


def swap(tensors):
    for name in tensors:
        tensors[name][[0, 1]] = tensors[name][[1, 0]]


def one_column(tensors):
    tensors["up_weight"][:, :, 3] = 0


EVERY = tuple(range(E))
# What is done to the experts' tensors, and which experts are wrong then.
CHANGES = {
    "one expert 1 % off": (scale("down_weight", 1.01, 2), (2,)),
    "one expert 0.1 % off": (scale("down_weight", 1.001, 2), (2,)),
    "every up 1 % off": (scale("up_weight", 1.01, slice(None)), EVERY),
    "rolled": (roll, EVERY),
    "two swapped": (swap, (0, 1)),
    "only one matrix rolled": (lambda t: t.update(up_weight=t["up_weight"].roll(1, 0)), EVERY),
    "no up bias": (lambda t: t["up_bias"].zero_(), EVERY),
    "no down bias": (lambda t: t["down_bias"].zero_(), EVERY),
    "column missing": (one_column, EVERY),
    "down negated": (scale("down_weight", -1.0, 4), (4,)),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("layer", [Routed, DenseMask])
def test_wrong_experts_do_not_match(layer, name):
    change, wrong = CHANGES[name]
    found, candidates = matches(layer, change)
    # The sum of the experts that come before a wrong one is there, and may be found.
    for match in found:
        assert not read(match, candidates)[:, list(wrong)].any()


def test_layer_without_the_experts_does_not_match():
    class Elsewhere(Routed):
        def forward(self, x):
            return self.gate(x) @ self.gate.weight

    found, _ = matches(Elsewhere)
    assert found == []


def test_experts_under_a_function_of_each_do_not_match():
    class Bent(Routed):
        def combine(self, x, weights, ids):
            chosen = torch.stack([expert(x) for expert in self.experts], 1)
            chosen = chosen.tanh().gather(1, ids[..., None].expand(-1, -1, H))
            return (chosen * weights[..., None]).sum(1)

    found, _ = matches(Bent)
    assert found == []
