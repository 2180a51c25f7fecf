"""Experts that are the contract's FFN, in every spelling, and those that are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from moe_export.ops.spec import GroupedExperts
from moe_export.recognize.expert_modules import bank_of_modules
from moe_export.recognize.unfused import UnfusedExperts
from moe_export.tolerances import LAYER_TOLERANCE, relative_error

H, INNER, E = 12, 20, 4

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


def bank_of(make):
    torch.manual_seed(0)
    experts = [make().eval() for _ in range(E)]
    return bank_of_modules("experts", experts, H), experts


def assert_computes(bank, experts, scale=1.0):
    rows = scale * torch.randn(33, H, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        for index, expert in enumerate(experts):
            error = relative_error(bank.expert(index, rows).numpy(), expert(rows).numpy())
            assert error <= LAYER_TOLERANCE, index


class Plain(nn.Module):
    def __init__(self, activation=F.relu, up_bias=True, down_bias=True):
        super().__init__()
        self.down = nn.Linear(INNER, H, bias=down_bias)
        self.up = nn.Linear(H, INNER, bias=up_bias)
        self.activation = activation

    def forward(self, x):
        return self.down(self.activation(self.up(x)))


class Gated(nn.Module):
    def __init__(self, activation=F.silu, up_first=False, biases=(False, False, False)):
        super().__init__()
        names = ("b", "a") if up_first else ("a", "b")
        for name, bias in zip((*names, "c"), biases, strict=True):
            sizes = (INNER, H) if name == "c" else (H, INNER)
            setattr(self, name, nn.Linear(*sizes, bias=bias))
        self.activation, self.up_first = activation, up_first

    def forward(self, x):
        if self.up_first:
            up = self.b(x)
            return self.c(up * self.activation(self.a(x)))
        return self.c(self.activation(self.a(x)) * self.b(x))


class Fused(nn.Module):
    """Gate and up in one matrix, in some order."""

    def __init__(self, split, bias=False, inner=lambda g, u: F.silu(g) * u):
        super().__init__()
        self.both, self.down = nn.Linear(H, 2 * INNER, bias=bias), nn.Linear(INNER, H, bias=bias)
        self.split, self.inner = split, inner

    def forward(self, x):
        return self.down(self.inner(*self.split(self.both(x))))


SPLITS = {
    "gate, up": lambda h: h.chunk(2, dim=-1),
    "up, gate": lambda h: h.chunk(2, dim=-1)[::-1],
    "alternating": lambda h: (h[..., ::2], h[..., 1::2]),
    "alternating, up first": lambda h: (h[..., 1::2], h[..., ::2]),
    "sliced": lambda h: (h[:, :INNER], h[:, INNER:]),
    "reshaped": lambda h: h.view(-1, 2, INNER).unbind(1),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_plain_activations(name):
    bank, experts = bank_of(lambda: Plain(ACTIVATIONS[name]))
    assert isinstance(bank.form, GroupedExperts)
    assert (bank.form.gated, bank.form.activation) == (False, name)
    assert (bank.form.hidden_size, bank.form.intermediate_size) == (H, INNER)
    assert_computes(bank, experts)
    assert_computes(bank, experts, 20.0)


@pytest.mark.parametrize("up_first", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gated_activations(name, up_first):
    bank, experts = bank_of(lambda: Gated(ACTIVATIONS[name], up_first))
    assert (bank.form.gated, bank.form.activation) == (True, name)
    assert_computes(bank, experts)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", SPLITS)
def test_fused_orders(name, bias):
    bank, experts = bank_of(lambda: Fused(SPLITS[name], bias))
    assert isinstance(bank.form, GroupedExperts)
    assert bank.form.gated
    assert bank.form.has_bias == bias
    assert_computes(bank, experts)


@pytest.mark.parametrize("biases", [(True, False), (False, True), (True, True), (False, False)])
def test_biases_of_some_linears(biases):
    bank, experts = bank_of(lambda: Plain(F.gelu, *biases))
    assert bank.form.has_bias == any(biases)
    assert_computes(bank, experts)


@pytest.mark.parametrize(
    "biases", [(True, False, False), (False, True, False), (False, False, True), (True, True, True)]
)
def test_biases_of_some_gated_linears(biases):
    bank, experts = bank_of(lambda: Gated(F.silu, biases=biases))
    assert bank.form.has_bias
    assert_computes(bank, experts)


def limited(gate, up):
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def test_limit_offset_and_alpha():
    bank, experts = bank_of(lambda: Fused(SPLITS["alternating"], True, limited))
    form = bank.form
    assert (form.activation, form.alpha, form.limit, form.up_offset) == ("silu", 1.702, 7.0, 1.0)
    assert form.limit_on == "input"
    assert_computes(bank, experts, 20.0)


UNUSUAL = {
    "tanh": lambda: Plain(torch.tanh),
    "elu": lambda: Plain(F.elu),
    "relu6": lambda: Plain(F.relu6),
    "hard swish": lambda: Plain(F.hardswish),
    "leaky": lambda: Plain(lambda x: F.leaky_relu(x, 0.1)),
    "nearly relu": lambda: Plain(lambda x: F.leaky_relu(x, 1e-3)),
    "clamped": lambda: Plain(lambda x: F.relu(x).clamp(max=50)),
    "norm inside": lambda: Plain(lambda x: F.layer_norm(F.relu(x), (INNER,))),
    "softmax inside": lambda: Plain(lambda x: x.softmax(-1)),
    "scaled": lambda: Plain(lambda x: 0.5 * F.relu(x)),
    "gated, scaled gate": lambda: Gated(lambda x: F.silu(2 * x)),
    "halves of one matrix": lambda: Fused(SPLITS["gate, up"], False, lambda g, u: g + u),
    "three linears": lambda: nn.Sequential(
        nn.Linear(H, INNER), nn.ReLU(), nn.Linear(INNER, INNER), nn.ReLU(), nn.Linear(INNER, H)
    ),
    "no activation": lambda: nn.Sequential(nn.Linear(H, INNER), nn.Linear(INNER, H)),
    "one linear": lambda: nn.Linear(H, H),
    "narrow result": lambda: nn.Sequential(nn.Linear(H, INNER), nn.ReLU(), nn.Linear(INNER, 5)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_other_experts_keep_their_operators(name):
    bank, experts = bank_of(UNUSUAL[name])
    assert_computes(bank, experts)
    assert_computes(bank, experts, 50.0)
    if name != "no activation":
        assert isinstance(bank.form, UnfusedExperts)


def test_relu_that_keeps_its_gate_positive_is_told_from_silu():
    bank, experts = bank_of(lambda: Gated(lambda x: F.silu(x) * (x > -20)))
    assert_computes(bank, experts, 50.0)


def test_equal_sizes_are_not_confused():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first = nn.Linear(H, H), nn.Linear(H, H)

        def forward(self, x):
            return self.second(F.gelu(self.first(x)))

    bank, experts = bank_of(Square)
    assert bank.form.intermediate_size == H
    assert_computes(bank, experts)
