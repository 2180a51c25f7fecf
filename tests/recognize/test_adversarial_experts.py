"""Experts that rows of the usual size do not tell apart: right, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.expert_modules import bank_of_modules
from tests.recognize.common import (
    Around,
    find_blocks,
)
from tests.recognize.layers import E, H
from tests.recognize.routed import Cases, Routed, Stacked

CASES = Cases()

CASES = Cases()

# Each takes seconds: scripts/test.sh --all runs them.
pytestmark = pytest.mark.slow


class Limited(nn.Module):
    def __init__(self, limit):
        super().__init__()
        self.up, self.down, self.limit = nn.Linear(H, 40), nn.Linear(40, H), limit

    def forward(self, x):
        return self.down(F.relu(self.up(x)).clamp(max=self.limit))


@CASES.add()
class LimitsDiffer(Routed):
    """Each expert has another limit, beyond the rows that experts are compared on."""

    def __init__(self):
        limits = iter(range(30, 60, 5))
        super().__init__(lambda: Limited(float(next(limits))))


@CASES.add()
class OneExpertLimited(Routed):
    def __init__(self):
        super().__init__(lambda: Limited(float("inf")))
        self.experts[3].limit = 40.0


class BranchingExpert(Limited):
    def forward(self, x):
        h = F.relu(self.up(x))
        return self.down(h.clamp(max=self.limit) if h.max() > self.limit else h)


@CASES.add()
class BranchingExperts(Routed):
    def __init__(self):
        super().__init__(lambda: BranchingExpert(25.0))


@CASES.add()
class StackedLimit(Stacked):
    """Stacked parameters with a limit that usual rows do not reach."""

    def inner(self, h):
        return h.clamp(max=10).relu()


@CASES.add()
class StackedGatedLimit(Stacked):
    """The limit of 7 of well-known models."""

    def __init__(self):
        super().__init__(32, 64)

    def inner(self, h):
        gate, up = h.chunk(2, -1)
        return F.silu(gate.clamp(max=7.0)) * up.clamp(-7.0, 7.0)


@CASES.add()
class ClampAsExpert(Routed):
    """An expert without parameters that gives usual rows back as they are."""

    def __init__(self):
        super().__init__()
        self.experts[E - 1] = nn.Hardtanh(-20.0, 20.0)


@CASES.add()
class GateLimit(Routed):
    """The gate's limit lies outside the grid on which gated inner functions are compared."""

    class Expert(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up = nn.Linear(H, 40), nn.Linear(H, 40)
            self.down = nn.Linear(40, H)

        def forward(self, x):
            return self.down(F.silu(self.gate(x).clamp(max=40)) * self.up(x))

    def __init__(self):
        super().__init__(self.Expert)


class FirstRows(Limited):
    """Rows from the eleventh on are dropped: rows 3 and 4 alone do not show it."""

    def forward(self, x):
        h = self.up(x).relu()
        return self.down(torch.cat([h[:10], 0 * h[10:]]))


def test_expert_that_drops_its_last_rows_is_refused():
    with pytest.raises(UnsupportedModelError):
        bank_of_modules("experts", [FirstRows(0.0) for _ in range(E)], H)


def test_experts_of_unequal_shape_are_refused_by_name():
    """It takes most of a minute, or fails inside, and the refusal names no expert."""
    layer = Routed()
    layer.experts[2] = nn.Sequential(nn.Linear(H, 8), nn.ReLU(), nn.Linear(8, H))
    with pytest.raises(UnsupportedModelError, match=r"experts\.2"):
        find_blocks(Around(layer), (9, H))


@pytest.mark.parametrize("name", CASES)
def test_is_right_or_refused(name):
    CASES.check(name)
