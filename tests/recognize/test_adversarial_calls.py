"""Capacities, shapes, state and ways of calling made to fool a recognizer: right, or refused."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import moe_export
from moe_export.errors import UnsupportedModelError
from moe_export.recognize.hints import hints_of
from moe_export.recognize.proof import MANY_CROWDS
from moe_export.recognize.sizes import Size, fit_number
from tests.recognize.common import (
    Around,
    assert_right_or_refused,
    crowd,
    find_blocks,
    fresh_batches,
    rows,
)
from tests.recognize.layers import E, H, LargeCapacity
from tests.recognize.routed import Cases, Routed

CASES = Cases()

CASES = Cases()

# Each takes seconds: scripts/test.sh --all runs them.
pytestmark = pytest.mark.slow


def crowds():
    return [crowd(700, seed=seed) for seed in range(12)] + [rows(4000)]


def one_limited(limited):
    class OneLimited(Routed):
        """One expert takes at most 300 tokens: only some experts get a crowd in the proof."""

        def forward(self, x):
            weights, ids = self.route(x)
            out = torch.zeros_like(x)
            for e, expert in enumerate(self.experts):
                token, slot = (ids == e).nonzero(as_tuple=True)
                if e == limited:
                    token, slot = token[:300], slot[:300]
                out.index_add_(0, token, weights[token, slot, None] * expert(x[token]))
            return out

    OneLimited.__name__ = f"OneLimited{limited}"
    return OneLimited


for number in range(E):
    CASES.add(inputs=crowds)(one_limited(number))


def capacity_case(name, capacity, counts):
    class Limited(Routed):
        def route(self, x):
            weights, ids = super().route(x)
            hit = F.one_hot(ids, E).reshape(-1, E)
            place = (hit.cumsum(0) * hit).sum(-1).reshape(ids.shape)
            return weights * (place <= capacity(len(x))), ids

    Limited.__name__ = name
    CASES.add(inputs=lambda: [crowd(n) for n in counts])(Limited)


# Eager's capacity is read as floor(2/51 T), ceil(171/256 T) and floor(2/25 T): off by one expert
# place at these counts.
capacity_case("CapacityOfMany", lambda t: max(4, int(1.25 * 2 * t / 64)), (153, 179, 204, 1500))
capacity_case("CapacityPlusOne", lambda t: int(2.0 * t * 2 / E) + 1, (259, 262, 1500))
capacity_case("CapacityInFours", lambda t: (t * 5 // 64 + 3) // 4 * 4, (777, 1500))

TRACED = [(n,) for n in (13, 24, 37, 2, 3, 5, 9, 64, 99, 201, 256, 333, 600, 47)]


def random_formula(generator):
    """A capacity as configurations say it: a share of the tokens, rounded, with its bounds."""
    factor = generator.choice([0.5, 1.0, 1.25, 1.5, 2.0])
    experts = generator.choice([4, 6, 8, 16, 64])
    ratio = Fraction(factor) * generator.choice([1, 2]) / experts
    up, multiple = generator.random() < 0.5, generator.choice([1, 1, 4, 8])
    low, times = generator.choice([None, 1, 4]), generator.choice([1, 6, 24])

    def function(t):
        share = math.ceil(ratio * t) if up else math.floor(ratio * t)
        share = (share + multiple - 1) // multiple * multiple
        return times * (share if low is None else max(low, share))

    holder = nn.Module()
    holder.capacity_factor, holder.num_experts, holder.top_k = factor, experts, 2
    return function, hints_of(holder)


@pytest.mark.parametrize("seed", range(60))
def test_random_capacities_agree_at_other_shapes_or_would_be_tried_there(seed):
    """What is read wrong at some size is wrong at one that the proof tries, too."""
    function, hints = random_formula(random.Random(seed))
    found = fit_number([function(t) for (t,) in TRACED], TRACED, hints=hints)
    if found is None:
        return
    others = {t: found.at((t,)) if isinstance(found, Size) else found for t in range(1, 1500)}
    wrong = [t for t, mine in others.items() if mine != function(t)]
    tried = {1, *MANY_CROWDS}
    if isinstance(found, Size):
        tried |= {t for (t,) in found.critical_points()}
    assert not wrong or tried & set(wrong), f"{found} at {wrong[:5]}"


class Batched(Routed):
    def odd(self, x):
        raise NotImplementedError

    def forward(self, x):
        y = super().forward(x.flatten(0, 1)).reshape(x.shape)
        return 2 * y if self.odd(x) else y


@CASES.add((2, 5, H), fresh_batches)
class DecodesDifferently(Batched):
    """One token for each of several sequences takes another path."""

    def odd(self, x):
        return x.shape[1] == 1 and x.shape[0] > 1


@CASES.add((2, 5, H), fresh_batches)
class LargeBatchesDiffer(Batched):
    def odd(self, x):
        return x.shape[0] >= 8


class Counting(Routed):
    """Doubles its result from the 301st call on: the counter is written, but not refused."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + (self.calls > 300))


def test_counter_is_refused():
    model = Around(Counting())

    def cases():
        with torch.no_grad():
            for _ in range(300):
                model(rows(2))
        yield rows(5)

    assert_right_or_refused(model, (9, H), cases())


class ReturnsNumbers(Routed):
    def forward(self, x):
        return super().forward(x), len(x), x.abs().mean().item()


class ReadsCount(Around):
    """The number of tokens that a layer returns is the one of the first trace."""

    def __init__(self):
        super().__init__(ReturnsNumbers())

    def forward(self, x):
        y, count, _ = self.moe(x)
        return y / count


class ReadsMean(Around):
    def __init__(self):
        super().__init__(ReturnsNumbers())

    def forward(self, x):
        y, _, mean = self.moe(x)
        return y / mean


class SetsAttribute(Routed):
    def forward(self, x):
        self.loss = self.scores(x).mean(0)
        return super().forward(x)


class ReadsAttribute(Around):
    """The model reads an attribute that the layer sets: bound, it is stale."""

    def __init__(self):
        super().__init__(SetsAttribute())

    def forward(self, x):
        return self.moe(x), self.moe.loss


class Doubles(Routed):
    def forward(self, x):
        return super().forward(x.mul_(2))


@CASES.add()
class ReadsWrittenInput(Around):
    """The layer writes to its input, which the model reads afterwards."""

    def __init__(self):
        super().__init__(Doubles())

    def forward(self, x):
        h = x + 1
        y = self.moe(h)
        return y + h


class TakesK(Routed):
    def forward(self, x, k, mask=None):
        weights, ids = self.scores(x).topk(k)
        return self.combine(x, weights if mask is None else weights * mask[:, None], ids)


def masked_inputs():
    return [(rows(30), torch.arange(30) % 3 > 0), (rows(4), torch.arange(4) < 2)]


class Masked(Around):
    def __init__(self):
        super().__init__(TakesK())

    def forward(self, x, mask):
        return self.moe(x, 2, mask)


@CASES.add((rows(9), torch.ones(9, dtype=torch.bool)), masked_inputs)
class MaskAllTrue(Masked):
    """The example's mask is all true, so that probes never mask: the mask is dropped."""


@CASES.add((rows(9), torch.zeros(9, dtype=torch.bool)), masked_inputs)
class PaddingAllFalse(Masked):
    """The same with the sense turned round."""

    def forward(self, x, padding):
        return super().forward(x, ~padding)


@pytest.mark.parametrize("model", [ReadsCount, ReadsMean, ReadsAttribute])
def test_a_model_that_reads_what_is_not_exported_is_refused(model, tmp_path):
    with pytest.raises(UnsupportedModelError):
        moe_export.build(model().eval(), (rows(9),), output=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_inferred_capacity_is_remarked():
    class ByTokens(Routed):
        def forward(self, x):
            scores = self.scores(x)
            best = scores.topk(max(1, len(x) // 4), dim=0)
            return self.dense(x, torch.zeros_like(scores).scatter(0, best.indices, best.values))

    (block,) = find_blocks(Around(ByTokens()), (9, H))
    assert any("1/4" in remark for remark in block.remarks)


def test_refusal_says_how_each_attempt_failed():
    """The reasons of the last attempt are deleted with those of the first."""
    with pytest.raises(UnsupportedModelError, match="differs from eager by"):
        find_blocks(Around(LargeCapacity()), (9, H))


@pytest.mark.parametrize("name", CASES)
def test_is_right_or_refused(name):
    CASES.check(name)
