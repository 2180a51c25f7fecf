"""Layers whose values are equal on usual probes and differ elsewhere: right, or refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from tests.recognize.common import (
    fresh_batches,
)
from tests.recognize.layers import H
from tests.recognize.routed import Cases, Routed

CASES = Cases()

CASES = Cases()

# Each takes seconds: scripts/test.sh --all runs them.
pytestmark = pytest.mark.slow


@CASES.add()
class ZeroRowsDropped(Routed):
    """Padding tokens, all zero, get no expert: the masked weights equal the unmasked on probes."""

    def forward(self, x):
        weights, ids = self.route(x)
        return self.combine(x, weights * (x != 0).any(-1, keepdim=True), ids)


@CASES.add()
class ClampedRows(Routed):
    """Experts get clamped rows, the gate does not."""

    def forward(self, x):
        return self.combine(x.clamp(-10, 10), *self.route(x))


@CASES.add()
class ClampedSum(Routed):
    """The sum is clamped: cutting at the last equal value drops the clamp."""

    def forward(self, x):
        return super().forward(x).clamp(-8, 8)


@CASES.add()
class OtherSelection(Routed):
    """Two selections that agree unless logits are large; the second one counts."""

    def forward(self, x):
        logits = self.gate(x)
        _ = logits.topk(2).indices
        ids = (logits - 1e-3 * logits**3).topk(2).indices
        return self.combine(x, logits.softmax(-1).gather(1, ids), ids)


@CASES.add()
class ThirdExpertSometimes(Routed):
    """Top-2 scattered, and now and then a third expert: ``top_k=2`` is read off the probes."""

    def forward(self, x):
        scores = self.scores(x)
        best = scores.topk(2)
        weights = torch.zeros_like(scores).scatter(1, best.indices, best.values)
        weights[:, 0] += F.relu(x[:, 0] - 4.5)
        return self.dense(x, weights)


class PositionLimit(Routed):
    """Positions from 600 on skip the experts: the mask never fires on fewer tokens a sequence."""

    def forward(self, x):
        weights, ids = (t.flatten(0, 1) for t in self.route(x))
        kept = (torch.arange(x.shape[1]) < 600).repeat(x.shape[0])
        return self.combine(x.flatten(0, 1), weights * kept[:, None], ids).reshape(x.shape)


CASES.add((2, 5, H), fresh_batches)(PositionLimit)


@CASES.add()
class FallbackExpert(Routed):
    """Tokens that no expert wants enough go to the first: random ones nearly never."""

    def route(self, x):
        weights, ids = super().route(x)
        return weights, torch.where(weights.sum(1, keepdim=True) > 0.36, ids, 0)


@CASES.add()
class BranchOnLargeValues(Routed):
    def forward(self, x):
        return super().forward(x / 2 if x.abs().max() > 20 else x)


@CASES.add()
class NumberFromValues(Routed):
    """A Python float from values that is 0.5 on every probe."""

    def forward(self, x):
        return super().forward(x) * x.abs().max().clamp(max=0.5).item()


@CASES.add()
class HalfPrecisionGate(Routed):
    """Recognition itself fails: NumPy has no such type."""

    def scores(self, x):
        return self.gate(x).to(torch.bfloat16).softmax(-1).float()


@CASES.add()
class CountsExperts(Routed):
    """Weights go by how many experts were hit."""

    def route(self, x):
        weights, ids = super().route(x)
        return weights / ids.unique().numel(), ids


@pytest.mark.parametrize("name", CASES)
def test_is_right_or_refused(name):
    CASES.check(name)
