"""Planted faults: a lowered form that differs from eager somewhere must not be proved."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.probes import Probes
from moe_export.recognize.proof import check_repeatable, covering_rows, prove_layer
from tests.recognize.common import Around, find_blocks, layer_call, rows
from tests.recognize.layers import E, H
from tests.recognize.routed import Routed


class WithLogits(Routed):
    def forward(self, x):
        return super().forward(x), self.gate(x)


class Batches(Routed):
    def forward(self, x):
        return super().forward(x.flatten(0, 1)).reshape(x.shape)


def proved(layer, example, fault=None):
    """Prove a layer's right block, or the one with a fault on its results."""
    torch.manual_seed(0)
    layer = layer().eval()
    (block,) = find_blocks(Around(layer), example)
    call = layer_call(layer, rows(*example[:-1]))
    if fault is not None:
        right = block.lowered
        faulty = lambda *args, **kwargs: fault(right(*args, **kwargs), *args)  # noqa: E731
        block = dataclasses.replace(block, lowered=faulty, proof=None)
    return prove_layer(block, call, Probes(call))


def at(condition, change):
    return lambda y, x: change(y) if condition(x) else y


def one_row(y):
    y[len(y) // 2] *= 1.001
    return y


def one_value(y):
    y.view(-1)[-1] += 1e-3 * y.abs().max()
    return y


def count(x):
    return x.numel() // H


FAULTS = {
    "a scale": at(lambda x: True, lambda y: y * 1.0001),
    "one token only": at(lambda x: count(x) == 1, lambda y: y * 2),
    "more than 200 tokens": at(lambda x: count(x) > 200, lambda y: y * 2),
    "more than 1000 tokens": at(lambda x: count(x) > 1000, one_row),
    "few tokens": at(lambda x: 1 < count(x) < 9, lambda y: y * 2),
    "odd counts": at(lambda x: count(x) % 2 == 1, lambda y: y + 1),
    "one row": at(lambda x: True, one_row),
    "one value": at(lambda x: True, one_value),
    "nan": at(lambda x: True, lambda y: y / (y * 0)),
    "zeros": at(lambda x: True, torch.zeros_like),
    "a row less": at(lambda x: True, lambda y: y[1:]),
    "an axis more": at(lambda x: True, lambda y: y[None]),
    "transposed rows": at(lambda x: True, lambda y: y.flip(0)),
    "a crowd": at(
        lambda x: float(x.std(0, correction=0).max()) < 0.1 * float(x.std()), lambda y: y * 2
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name):
    with pytest.raises(UnsupportedModelError, match=r"differs from eager by .* on \["):
        proved(Routed, (9, H), FAULTS[name])


def test_fault_on_batches_is_found():
    with pytest.raises(UnsupportedModelError, match="differs from eager"):
        proved(Batches, (2, 5, H), at(lambda x: x.shape[0] > 1 and x.shape[1] > 20, one_value))


def test_fault_in_another_result_is_found():
    def fault(result, x):
        return result[0], result[1] + 1e-3

    with pytest.raises(UnsupportedModelError, match="in result 1"):
        proved(WithLogits, (9, H), fault)


def test_form_that_does_not_run_is_refused():
    def fault(y, x):
        raise RuntimeError("the size of tensor a must match\nand more")

    with pytest.raises(UnsupportedModelError, match=r"does not run on \[9, 24\]: the size of tens"):
        proved(Routed, (9, H), fault)


@pytest.mark.parametrize("expert", range(E))
def test_fault_of_any_one_expert_is_found(expert):
    class Lopsided(Routed):
        """All but the first two experts are rare."""

        def __init__(self):
            super().__init__()
            self.gate.bias.data[2:] -= 2.0

    torch.manual_seed(0)
    gate = Lopsided().gate

    def fault(y, x):
        with torch.no_grad():
            hit = (gate(x).topk(2).indices == expert).any(-1, keepdim=True)
        return y * (1 + 0.01 * hit)

    with pytest.raises(UnsupportedModelError, match="differs from eager"):
        proved(Lopsided, (9, H), fault)


def test_what_was_proved_is_told():
    block = proved(Routed, (9, H))
    assert block.proof.experts_reached == E
    assert block.proof.max_error < 1e-6
    assert {1, 9, 256, 1024} <= set(block.proof.tokens)


def test_modules_count_where_they_get_their_rows():
    class Dense(Routed):
        def forward(self, x):
            weights, ids = self.route(x)
            return self.dense(x, torch.zeros(len(x), E).scatter(1, ids, weights))

    assert len(proved(Routed, (9, H)).expert_modules) == E
    assert proved(Dense, (9, H)).expert_modules == ()


def test_two_answers_to_one_input():
    class Answers(nn.Module):
        def __init__(self, change):
            super().__init__()
            self.change, self.calls = change, 0

        def forward(self, x):
            self.calls += 1
            return self.change(x, self.calls)

    def check(change):
        call = layer_call(Answers(change), rows(3))
        return check_repeatable(call, call.tensors)

    for change in (
        lambda x, n: x + torch.rand(()),
        lambda x, n: x + n,
        lambda x, n: x[:n],
        lambda x, n: (x, {"loss": x.sum() * n}),
    ):
        with pytest.raises(UnsupportedModelError, match="two answers to one input"):
            check(change)
    assert len(check(lambda x, n: (x, x / 0 * 0))) == 2  # nan is nan


def test_rows_are_found_for_rare_experts():
    directions = torch.randn(E, H)
    bias = torch.tensor([0.0, 0.0, -6.0, -6.0, -9.0, -9.0])

    def route(x):
        return (x @ directions.T / H**0.5 + bias).topk(1).indices

    found = covering_rows(route, E, rows(9), directions)
    assert set(route(found).flatten().tolist()) == set(range(E))


def test_rows_of_an_expert_that_nothing_reaches():
    found = covering_rows(lambda x: torch.zeros(len(x), 1).long(), E, rows(9), rows(0))
    assert len(found) >= 1
