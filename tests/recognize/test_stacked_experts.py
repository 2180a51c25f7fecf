"""Stacked experts in unusual ways: weights on their input, one neuron each, and copies behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from moe_export.errors import UnsupportedModelError
from tests.recognize.common import TOLERANCE, Wrapped, find_blocks, largest_error, rows
from tests.recognize.layers import E, H

INNER, NEURONS, COPIES, TOP = 12, 24, 3, 2


class WeightedInput(nn.Module):
    """Every expert runs on every token, times the token's weight for it, zero if not chosen."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(H, E, bias=False)
        self.up = nn.Parameter(torch.randn(E, H, 2 * INNER) / 4)
        self.down = nn.Parameter(torch.randn(E, INNER, H) / 4)

    def forward(self, x):
        tokens = x.reshape(-1, H)
        best, ids = self.gate(tokens).topk(TOP, dim=-1)
        weights = torch.zeros(len(tokens), E).scatter(1, ids, best.sigmoid())
        given = (tokens.repeat(E, 1) * weights.T.reshape(-1, 1)).view(E, -1, H)
        gate, up = torch.bmm(given, self.up).chunk(2, dim=-1)
        return torch.bmm(F.silu(gate) * up, self.down).sum(0).view(x.shape)


class Neurons(nn.Module):
    """Experts of one neuron each, which are rows of two embeddings."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(H, NEURONS, bias=False)
        self.down = nn.Embedding(NEURONS, H)
        self.up = nn.Embedding(NEURONS, H)

    def forward(self, x):
        weights, ids = self.gate(x).softmax(-1).topk(TOP, dim=-1)
        inner = (self.down(ids) @ x[..., None]).squeeze(-1)
        return ((F.silu(inner) * weights)[..., None, :] @ self.up(ids)).squeeze(-2)


class Copies(nn.Module):
    """Experts of which the last give their row back; the first matrix has room for them."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(H, E + COPIES, bias=False)
        self.up = nn.Parameter(torch.randn(E + COPIES, 2 * INNER, H) / 4)
        self.down = nn.Parameter(torch.randn(E, H, INNER) / 4)

    def forward(self, x):
        weights, ids = self.gate(x).softmax(-1).topk(TOP, dim=-1)
        out = torch.zeros_like(x)
        for expert in range(E + COPIES):
            token, slot = torch.where(ids == expert)
            y = x[token]
            if expert < E:
                gate, up = F.linear(y, self.up[expert]).chunk(2, dim=-1)
                y = F.linear(F.silu(gate) * up, self.down[expert])
            out.index_add_(0, token, y * weights[token, slot, None])
        return out


class Dense(nn.Module):
    """No experts: the matrices' blocks add up, whatever they are cut into."""

    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(H, E)
        self.up = nn.Linear(H, E * INNER, bias=False)
        self.down = nn.Linear(E * INNER, H, bias=False)

    def forward(self, x):
        best = self.scores(x).topk(TOP, dim=-1).indices
        return self.down(F.silu(self.up(x))) + 0 * best.sum(-1, keepdim=True)


def found(layer):
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    model = Wrapped(layer).eval()
    (block,) = find_blocks(model, (9, H))
    for count in (1, 6, 50):
        assert largest_error([block], model, rows(count)) <= TOLERANCE
    return block


def test_weights_on_the_input_run_the_chosen_experts_alone():
    block = found(WeightedInput())
    assert block.experts.weight_on == "input"
    assert block.proof.experts_reached == E


def test_rows_of_embeddings_are_experts_of_one_neuron():
    block = found(Neurons())
    assert (block.experts.num_experts, block.experts.intermediate_size) == (NEURONS, 1)


def test_experts_behind_the_stacked_ones_give_their_row_back():
    block = found(Copies())
    assert block.experts.num_experts == E
    assert block.proof.experts_reached == E


def test_blocks_of_a_dense_layer_are_no_experts():
    with pytest.raises(UnsupportedModelError, match="no Mixture-of-Experts layer found"):
        find_blocks(Wrapped(Dense()).eval(), (9, H))
