"""Layers made to fool a recognizer by their shapes, experts and arguments: right, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.recognize.common import Around, crowd, fresh_batches, rows
from tests.recognize.layers import E, H
from tests.recognize.routed import Cases, Routed

CASES = Cases()


@CASES.add()
class OneToken(Routed):
    def forward(self, x):
        return super().forward(x) * (2 if len(x) == 1 else 1)


@CASES.add((2, 5, H), fresh_batches)
class CapacityByBatch(Routed):
    """An expert takes four tokens for each sequence, the first ones of the batch."""

    def forward(self, x):
        flat = x.flatten(0, 1)
        weights, ids = self.route(flat)
        hit = F.one_hot(ids, E).reshape(-1, E)
        place = (hit.cumsum(0) * hit).sum(-1).reshape(ids.shape)
        return self.combine(flat, weights * (place <= 4 * len(x)), ids).reshape(x.shape)


class Mixing(nn.Module):
    """An expert that mixes its rows, if there are many."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(H, 40), nn.Linear(40, H)

    def forward(self, x):
        y = self.down(self.up(x).relu())
        return y - y.mean(0) if len(x) > 60 else y


@CASES.add()
class MixingExperts(Routed):
    def __init__(self):
        super().__init__(Mixing)


def multiples():
    return [rows(12), rows(64), crowd(64)]


@CASES.add((8, H), multiples)
class ShareOfFixedCount(Routed):
    """Takes multiples of four tokens only: probes have the example's count."""

    def forward(self, x):
        assert len(x) % 4 == 0
        scores = self.scores(x)
        best = scores.topk(len(x) // 4, dim=0)
        return self.dense(x, torch.zeros_like(scores).scatter(0, best.indices, best.values))


@CASES.add()
class SharedModule(Routed):
    """One module is two experts."""

    def __init__(self):
        super().__init__()
        self.experts[2] = self.experts[0]


@CASES.add()
class SharedWeights(Routed):
    """Experts share some parameters."""

    def __init__(self):
        super().__init__()
        self.experts[2][0].weight = self.experts[0][0].weight
        self.experts[0][2].bias = self.experts[1][2].bias


@CASES.add()
class EqualExperts(Routed):
    """All experts are copies, as after upcycling: which one ran cannot be seen."""

    def __init__(self):
        super().__init__()
        for expert in self.experts:
            expert.load_state_dict(self.experts[0].state_dict())


@CASES.add()
class EqualScores(Routed):
    """A gate of zeros: every token is a tie."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)


@CASES.add()
class Root(Routed):
    """A number that is no share of the tokens."""

    def scores(self, x):
        return (self.gate(x) / len(x) ** 0.5).softmax(-1)


@CASES.add()
class GrowingCache(Routed):
    """A table that is made again when more tokens come."""

    table = None

    def route(self, x):
        if self.table is None or len(self.table) < len(x):
            self.table = torch.linspace(1, 2, len(x))
        weights, ids = super().route(x)
        return weights * self.table[: len(x), None], ids


@CASES.add()
class LargestLoad(Routed):
    """The number of an expert's tokens is the size of something else."""

    def forward(self, x):
        ids = self.route(x).indices
        return super().forward(x) + x[: int(ids.flatten().bincount(minlength=E).max())].sum(0)


class WithBias(Routed):
    def forward(self, x, bias):
        weights, ids = (self.gate(x) + bias).softmax(-1).topk(2)
        return self.combine(x, weights, ids)


class TwoInputs(Around):
    def forward(self, x, other):
        return self.moe(x, other)


@CASES.add(
    (rows(E), torch.randn(E)), lambda: [(rows(30), torch.randn(E)), (rows(E), torch.randn(E))]
)
class SizesCoincide(TwoInputs):
    """As many tokens as experts in the example, and a tensor of that size besides."""

    def __init__(self):
        super().__init__(WithBias())


class GatedByOther(Routed):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(12, E)

    def forward(self, gate_input, x):
        weights, ids = self.router(gate_input).softmax(-1).topk(2)
        return self.combine(x, weights, ids)


@CASES.add(
    (rows(9)[:, :12], rows(9, seed=1)),
    lambda: [(rows(n)[:, :12], rows(n, seed=1)) for n in (1, 30, 1500)],
)
class OtherInputFirst(TwoInputs):
    """The tensor that holds the tokens comes second, the gate's own input first."""

    def __init__(self):
        super().__init__(GatedByOther())


@CASES.add()
class TwoLists(Routed):
    """A second list of experts under its own routing."""

    def __init__(self):
        super().__init__()
        self.other = Routed()

    def forward(self, x):
        weights, ids = self.route(x)
        return self.combine(x, weights, ids) + self.other.combine(x, weights.flip(1), ids)


@CASES.add()
class SumOverTokens(Routed):
    """A global token is added to each row: rows of the experts depend on each other."""

    def forward(self, x):
        return super().forward(x + x.mean(0, keepdim=True))


@pytest.mark.parametrize("name", CASES)
def test_is_right_or_refused(name):
    CASES.check(name)
