"""Experts that are parameters: stacked, flattened, numbered, in lists and dicts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from moe_export.ops.spec import GroupedExperts
from moe_export.recognize.families import expert_counts, parameter_families
from moe_export.tolerances import LAYER_TOLERANCE
from tests.recognize.common import Around, find_blocks, largest_error, rows
from tests.recognize.layers import H

E, INNER = 5, 40


def up_weights():
    return torch.randn(E, INNER, H) / 5


def down_weights():
    return torch.randn(E, H, INNER) / 6


class Layer(nn.Module):
    """Each expert's up ``[I, H]`` and down ``[H, I]`` come from ``one``; biases may be None."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(H, E)
        self.store(up_weights(), down_weights())

    def biases(self, e):
        return None, None

    def forward(self, x):
        weights, ids = self.gate(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for e in range(E):
            token, slot = (ids == e).nonzero(as_tuple=True)
            (up, down), (up_bias, down_bias) = self.one(e), self.biases(e)
            y = F.linear(F.relu(F.linear(x[token], up, up_bias)), down, down_bias)
            out.index_add_(0, token, y * weights[token, slot, None])
        return out


class Stacked(Layer):
    def store(self, up, down):
        self.up, self.down = nn.Parameter(up), nn.Parameter(down)

    def one(self, e):
        return self.up[e], self.down[e]


class Transposed(Layer):
    def store(self, up, down):
        self.up = nn.Parameter(up.transpose(1, 2).contiguous())
        self.down = nn.Parameter(down.transpose(1, 2).contiguous())

    def one(self, e):
        return self.up[e].T, self.down[e].T


class Mixed(Stacked):
    def store(self, up, down):
        self.up = nn.Parameter(up.transpose(1, 2).contiguous())
        self.down = nn.Parameter(down)

    def one(self, e):
        return self.up[e].T, self.down[e]


class Flattened(Layer):
    """Experts below each other in one matrix."""

    def store(self, up, down):
        self.up = nn.Parameter(up.reshape(-1, H))
        self.down = nn.Parameter(down.transpose(1, 2).reshape(-1, H))

    def one(self, e):
        rows = slice(e * INNER, (e + 1) * INNER)
        return self.up[rows], self.down[rows].T


class Numbered(Layer):
    def store(self, up, down):
        for e in range(E):
            self.register_parameter(f"w{e}_up", nn.Parameter(up[e]))
            self.register_parameter(f"w{e}_down", nn.Parameter(down[e]))

    def one(self, e):
        return getattr(self, f"w{e}_up"), getattr(self, f"w{e}_down")


class Lists(Layer):
    def store(self, up, down):
        self.up = nn.ParameterList(list(up))
        self.down = nn.ParameterList(list(down))

    def one(self, e):
        return self.up[e], self.down[e]


class Dicts(Layer):
    def store(self, up, down):
        self.up = nn.ParameterDict({f"expert_{e}": up[e] for e in range(E)})
        self.down = nn.ParameterDict({f"expert_{e}": down[e] for e in range(E)})

    def one(self, e):
        return self.up[f"expert_{e}"], self.down[f"expert_{e}"]


class WithBiases(Stacked):
    def store(self, up, down):
        super().store(up, down)
        self.up_bias = nn.Parameter(torch.randn(E, INNER))
        self.down_bias = nn.Parameter(torch.randn(E, H))

    def biases(self, e):
        return self.up_bias[e], self.down_bias[e]


class BiasOfDown(WithBiases):
    def biases(self, e):
        return None, self.down_bias[e]


class ThreeAxes(WithBiases):
    """Biases as ``[E, 1, n]``."""

    def store(self, up, down):
        super().store(up, down)
        self.up_bias = nn.Parameter(torch.randn(E, 1, INNER))
        self.down_bias = nn.Parameter(torch.randn(E, 1, H))

    def biases(self, e):
        return self.up_bias[e, 0], self.down_bias[e, 0]


class Unused(Stacked):
    """Another stack of the same shape, which nothing uses, comes first."""

    def store(self, up, down):
        self.aside = nn.Parameter(up_weights())
        super().store(up, down)


LAYERS = [
    *(Stacked, Transposed, Mixed, Flattened, Numbered, Lists, Dicts),
    *(WithBiases, BiasOfDown, ThreeAxes, Unused),
]


@pytest.mark.parametrize("layer", LAYERS)
def test_layouts_are_read(layer):
    torch.manual_seed(0)
    made = layer()
    model = Around(made)
    (block,) = find_blocks(model, (9, H))
    form = block.experts
    assert isinstance(form, GroupedExperts)
    assert (form.num_experts, form.hidden_size, form.intermediate_size) == (E, H, INNER)
    assert (form.gated, form.activation) == (False, "relu")
    assert form.has_bias == (made.biases(0)[1] is not None)
    assert block.proof.experts_reached == E
    for x in (rows(1), rows(1500), rows(40, scale=10.0)):
        assert largest_error([block], model, x) <= LAYER_TOLERANCE


def families(module):
    found = parameter_families(module, E, [H, INNER])
    return {family.name: family.tensor for family in found}


@pytest.mark.parametrize(("layer", "names"), [(Numbered, ("w#_up", "w#_down"))])
def test_numbers_in_names_are_experts(layer, names):
    made = layer()
    found = families(made)
    for name, position in zip(names, (0, 1), strict=True):
        expected = torch.stack([made.one(e)[position] for e in range(E)])
        assert torch.equal(found[name], expected)


def test_ten_experts_are_in_order_of_their_numbers():
    module = nn.Module()
    module.w = nn.ParameterList([torch.full((2, 3), float(n)) for n in range(12)])
    (family,) = [f for f in parameter_families(module, 12, [3]) if "#" in f.name]
    assert family.tensor[:, 0, 0].tolist() == list(range(12))


def test_flattened_matrix_is_a_view_by_expert():
    made = Flattened()
    found = families(made)["up"]
    assert found.shape == (E, INNER, H)
    assert torch.equal(found[3], made.one(3)[0])
    assert found.data_ptr() == made.up.data_ptr()


def test_stacks_count_for_more_than_names():
    module = Stacked()
    module.register_parameter("extra_0", nn.Parameter(torch.zeros(3)))
    module.register_parameter("extra_1", nn.Parameter(torch.zeros(3)))
    assert expert_counts(module)[0] == E


def test_unequal_shapes_are_no_family():
    module = nn.Module()
    module.w = nn.ParameterList([torch.zeros(2, 3 + n) for n in range(E)])
    assert families(module) == {}
