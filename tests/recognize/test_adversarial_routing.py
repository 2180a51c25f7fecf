"""Routings made to fool a recognizer that compares values: right on fresh inputs, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.recognize.layers import E, H
from tests.recognize.routed import Cases, Routed

CASES = Cases()


@CASES.add()
class TopAndThreshold(Routed):
    """Top-2 and whatever else is above a threshold that random scores hardly reach."""

    def forward(self, x):
        scores = self.scores(x)
        kept = torch.zeros_like(scores).scatter(1, scores.topk(2).indices, 1.0)
        return self.dense(x, scores * (kept.bool() | (scores > 0.3)))


@CASES.add()
class SelectsByMagnitude(Routed):
    def forward(self, x):
        logits = self.gate(x)
        ids = logits.abs().topk(2).indices
        return self.dense(x, torch.zeros_like(logits).scatter(1, ids, logits.gather(1, ids)))


@CASES.add()
class NegativeWeights(Routed):
    def route(self, x):
        return self.gate(x).topk(2)


@CASES.add()
class SameExpertTwice(Routed):
    def route(self, x):
        scores = self.scores(x)
        ids = torch.stack([scores.argmax(1), (scores * 1.0).argmax(1)], 1)
        return scores.gather(1, ids), ids


@CASES.add()
class NormedByBatch(Routed):
    """Weights go by the largest one of the batch."""

    def route(self, x):
        weights, ids = self.scores(x).topk(2)
        return weights / weights.max().clamp(max=0.1), ids


@CASES.add()
class LoadDependent(Routed):
    """Scores change when nearly all tokens want one expert."""

    def scores(self, x):
        scores = super().scores(x)
        load = F.one_hot(scores.argmax(1), E).float().mean(0).max()
        return torch.where(load > 0.9, scores**2, scores)


class Rare(Routed):
    """The last expert is hardly ever chosen."""

    def __init__(self):
        super().__init__()
        self.gate.bias.data[E - 1] -= 4


@CASES.add()
class RareLoop(Rare):
    """Dense weights are filled in for the experts that were hit."""

    def forward(self, x):
        weights, ids = self.route(x)
        dense = torch.zeros(len(x), E)
        for e in ids.unique().tolist():
            dense[:, e] = (weights * (ids == e)).sum(1)
        return self.dense(x, dense)


@CASES.add()
class RareWeight(Rare):
    """The rare expert counts twice."""

    def route(self, x):
        weights, ids = super().route(x)
        return weights * (1 + (ids == E - 1)), ids


@CASES.add()
class RareResult(Rare):
    """The same, where no value by token shows it."""

    def combine(self, x, weights, ids):
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = (ids == e).nonzero(as_tuple=True)
            if len(token):
                factor = 2 if e == E - 1 else 1
                out.index_add_(0, token, factor * weights[token, slot, None] * expert(x[token]))
        return out


@CASES.add()
class BestOfTwoGates(Routed):
    """A second gate decides where the first one's scores are close: nearly never."""

    def __init__(self):
        super().__init__()
        self.second = nn.Linear(H, E)

    def route(self, x):
        scores = self.scores(x)
        best = scores.topk(2)
        other = self.second(x).topk(2).indices
        close = best.values[:, :1] - best.values[:, 1:] < 1e-5
        ids = torch.where(close, other, best.indices)
        return scores.gather(1, ids), ids


@CASES.add()
class LastTokens(Routed):
    """The last three tokens skip the experts."""

    def route(self, x):
        weights, ids = super().route(x)
        return weights * (torch.arange(len(x)) < len(x) - 3)[:, None], ids


@CASES.add()
class DoubleGate(Routed):
    def scores(self, x):
        return self.gate(x).double().softmax(-1).float()


@pytest.mark.parametrize("name", CASES)
def test_is_right_or_refused(name):
    CASES.check(name)
