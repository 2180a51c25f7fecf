"""Banks of alike modules: one is traced, every one is compared, and rows may not mix."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.expert_modules import bank_of_modules
from tests.recognize.test_ffn_form import INNER, E, H, Plain, assert_computes, bank_of


class Norms(nn.Module):
    """Norms before and between, a residual, a scalar and a vector of the expert's own."""

    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        self.before, self.between = norm(H), nn.LayerNorm(INNER)
        self.up, self.down = nn.Linear(H, INNER), nn.Linear(INNER, H, bias=False)
        self.scale, self.vector = nn.Parameter(torch.randn(())), nn.Parameter(torch.randn(H))
        for parameter in (*self.before.parameters(), *self.between.parameters()):
            nn.init.normal_(parameter)

    def forward(self, x):
        h = self.between(F.gelu(self.up(self.before(x))))
        return x + self.scale * self.vector * self.down(h)


class Scaled(nn.Module):
    def __init__(self, shape=()):
        super().__init__()
        self.ffn, self.scale = Plain(), nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return self.ffn(x) * self.scale


class Buffered(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.randn(H))

    def forward(self, x):
        return super().forward(x + self.shift)


class Made(nn.Module):
    """Its matrix is made from parameters at each call."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(H, 3)), nn.Parameter(torch.randn(3, H))

    def forward(self, x):
        return F.relu(x @ (self.left @ self.right))


EXPERTS = {
    "norms": Norms,
    "rms norm": lambda: Norms(nn.RMSNorm),
    "scalar": Scaled,
    "one-element": lambda: Scaled((1,)),
    "vector": lambda: Scaled((H,)),
    "row": lambda: Scaled((1, H)),
    "buffer": Buffered,
    "made matrix": Made,
    "dropout": lambda: nn.Sequential(Plain(), nn.Dropout(0.5)),
    "batch norm in eval": lambda: nn.Sequential(nn.BatchNorm1d(H), Plain()),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_with_more_than_products(name):
    try:
        bank, experts = bank_of(EXPERTS[name])
    except UnsupportedModelError:
        assert name in ("batch norm in eval", "made matrix")
        return
    assert_computes(bank, experts)
    assert_computes(bank, experts, 10.0)


def test_experts_of_many_in_one_call():
    bank, experts = bank_of(Norms)
    rows = torch.randn(9, H)
    with torch.no_grad():
        expected = torch.stack([expert(rows) for expert in experts])
    torch.testing.assert_close(bank.outputs(rows), expected, rtol=1e-5, atol=1e-5)
    ids = torch.tensor([[0, 3], [2, E], [1, 1]] * 3)
    weights = torch.randn(9, 2)
    served = [(ids == e).float().mul(weights).sum(1, keepdim=True) for e in range(E)]
    total = sum(w * y for w, y in zip(served, expected, strict=True))
    with torch.no_grad():
        found = bank.lower(rows, ids, weights, list(bank.tensors.values()), "moe")
    torch.testing.assert_close(found, total, rtol=1e-4, atol=1e-4)


def odd_one(index, make, odd):
    torch.manual_seed(0)
    experts = [make() for _ in range(E)]
    experts[index] = odd()
    return experts


@pytest.mark.parametrize("index", [1, 3])
@pytest.mark.parametrize(
    "odd",
    [
        lambda: Plain(F.gelu),
        lambda: Plain(lambda x: 1.01 * F.relu(x)),
        lambda: Plain(lambda x: F.relu(x) + 0.01),
    ],
)
def test_expert_that_behaves_otherwise_is_named(index, odd):
    with pytest.raises(UnsupportedModelError, match=rf"moe\.experts\.{index} \(Plain\)"):
        bank_of_modules("moe.experts", odd_one(index, Plain, odd), H)


@pytest.mark.parametrize("index", [1, 3])
def test_expert_of_another_shape_is_not_taken(index):
    class Wide(Plain):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(H, 2 * INNER), nn.Linear(2 * INNER, H)

    with pytest.raises((UnsupportedModelError, RuntimeError)):
        bank_of_modules("moe.experts", odd_one(index, Plain, Wide), H)


class Mixes(nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.up, self.down, self.mix = nn.Linear(H, INNER), nn.Linear(INNER, H), mix

    def forward(self, x):
        return self.down(self.mix(F.relu(self.up(x))))


MIXES = {
    "mean of rows": lambda h: h - h.mean(0),
    "statistics of rows": lambda h: (h - h.mean(0)) / (h.std(0) + 1e-5),
    "softmax over rows": lambda h: h.softmax(0) * len(h),
    "running sum": lambda h: h.cumsum(0),
    "largest row": lambda h: h / h.amax(0, keepdim=True).clamp(min=1),
    "largest value": lambda h: h / h.max().clamp(min=1),
    "turned round": lambda h: h.flip(0),
    "rolled": lambda h: h.roll(1, 0),
    "row number": lambda h: h * torch.arange(1, len(h) + 1)[:, None],
    "number of rows": lambda h: h / len(h),
    "attention": lambda h: (h @ h.T).softmax(-1) @ h,
}


@pytest.mark.parametrize("name", MIXES)
def test_experts_that_mix_rows_do_not_pass(name):
    torch.manual_seed(0)
    experts = [Mixes(MIXES[name]) for _ in range(E)]
    with pytest.raises(UnsupportedModelError):
        bank_of_modules("moe.experts", experts, H)


class TwoResults(Plain):
    def forward(self, x):
        return super().forward(x), x.sum()


def test_expert_with_two_results_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"experts\.0 \(TwoResults\) returns 2 values"):
        bank_of(TwoResults)


def test_expert_that_ignores_its_rows_is_refused():
    class Ignores(Plain):
        def forward(self, x):
            return self.down.bias.expand(len(x), H) * 1

    with pytest.raises(UnsupportedModelError):
        bank_of(Ignores)
