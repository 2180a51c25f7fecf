"""Layers that return more than one tensor, and inputs of other ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.zoo.layer import ROWS, SEQUENCES, H, ZooLayer, floats, made
from tests.zoo.styles.common import Experts


class WithAuxLoss(nn.Module):
    """(hidden, loss): the Switch balance loss, from all tokens of the call."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.num_experts = num_experts
        self.gate = nn.Linear(H, num_experts)
        self.experts = Experts(num_experts)

    def forward(self, x):
        flat = x.view(-1, H)
        probs = F.softmax(self.gate(flat), dim=-1)
        weights, ids = probs.topk(2, dim=-1)
        y = self.experts.combine(flat, weights, ids)
        fraction = F.one_hot(ids, self.num_experts).float().mean(dim=(0, 1))
        return y.view_as(x), self.num_experts * torch.sum(fraction * probs.mean(0))


class WithRouterLogits(nn.Module):
    """(hidden, router logits), logits flattened over the batch."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.gate = nn.Linear(H, num_experts, bias=False)
        self.experts = Experts(num_experts)

    def forward(self, hidden_states):
        b, s, h = hidden_states.shape
        hidden_states = hidden_states.view(b * s, h)
        router_logits = self.gate(hidden_states)
        weights, ids = router_logits.softmax(dim=1).topk(2, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        y = self.experts.combine(hidden_states, weights, ids)
        return y.reshape(b, s, h), router_logits


@dataclass
class MoEOutput:
    hidden_states: Tensor
    expert_ids: Tensor
    z_loss: Tensor


class WithDataclass(nn.Module):
    def __init__(self, num_experts=6):
        super().__init__()
        self.gate = nn.Linear(H, num_experts)
        self.experts = Experts(num_experts)

    def forward(self, x):
        logits = self.gate(x)
        top = torch.topk(logits, 2, dim=-1)
        y = self.experts.combine(x, torch.softmax(top.values, -1), top.indices)
        z_loss = torch.logsumexp(logits, dim=-1).square().mean()
        return MoEOutput(hidden_states=y, expert_ids=top.indices, z_loss=z_loss)


class WithDict(nn.Module):
    """A dictionary with a nested one of statistics: how many tokens each expert got."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.num_experts = num_experts
        self.gate = nn.Linear(H, num_experts)
        self.experts = Experts(num_experts)

    def forward(self, x):
        probs = torch.sigmoid(self.gate(x))
        weights, ids = probs.topk(2, dim=-1)
        y = self.experts.combine(x, weights, ids)
        load = F.one_hot(ids, self.num_experts).sum(dim=(0, 1))
        return {"output": y, "stats": {"load": load, "mean_gate": probs.mean(dim=0)}}


class FeatureMap(nn.Module):
    """[B, h, w, C]: every pixel is a token."""

    def __init__(self, num_experts=5):
        super().__init__()
        self.gate = nn.Linear(H, num_experts)
        self.experts = Experts(num_experts)

    def forward(self, x):
        tokens = x.flatten(0, 2)
        weights, ids = self.gate(tokens).softmax(-1).topk(2, dim=-1)
        return x + self.experts.combine(tokens, weights, ids).view_as(x)


class ChannelsFirst(nn.Module):
    """[B, C, h, w]: permuted to tokens and back; top-1."""

    def __init__(self, num_experts=5):
        super().__init__()
        self.router = nn.Conv2d(H, num_experts, kernel_size=1)
        self.experts = Experts(num_experts)

    def forward(self, x):
        b, c, h, w = x.shape
        probs = self.router(x).softmax(dim=1).permute(0, 2, 3, 1).reshape(-1, len(self.experts))
        weight, ids = probs.max(dim=-1, keepdim=True)
        tokens = x.permute(0, 2, 3, 1).reshape(-1, c)
        y = self.experts.combine(tokens, weight, ids)
        return y.reshape(b, h, w, c).permute(0, 3, 1, 2)


class SequenceFirst(nn.Module):
    """[S, B, H] as in fairseq; the batch is axis 1."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.gate = nn.Linear(H, num_experts, bias=False)
        self.experts = Experts(num_experts)

    def forward(self, x):
        tokens = x.transpose(0, 1).reshape(-1, H)
        scores, ids = self.gate(tokens).topk(2, dim=-1)
        y = self.experts.combine(tokens, scores.softmax(-1), ids)
        return y.reshape(x.shape[1], x.shape[0], H).transpose(0, 1)


LAYERS = [
    ZooLayer("with_aux_loss", made(WithAuxLoss), num_experts=6, coupled=None, **SEQUENCES),
    ZooLayer(
        "with_router_logits", made(WithRouterLogits), num_experts=6, coupled=None, **SEQUENCES
    ),
    ZooLayer("with_dataclass", made(WithDataclass), num_experts=6, coupled=None, **ROWS),
    ZooLayer("with_dict", made(WithDict), num_experts=6, coupled=None, **ROWS),
    ZooLayer(
        "feature_map",
        made(FeatureMap),
        inputs=floats(2, 3, 4, H),
        other_inputs=(floats(1, 3, 4, H), floats(5, 3, 4, H)),
        num_experts=5,
    ),
    ZooLayer(
        "channels_first",
        made(ChannelsFirst),
        inputs=floats(2, H, 3, 4),
        other_inputs=(floats(1, H, 3, 4), floats(5, H, 3, 4)),
        num_experts=5,
    ),
    ZooLayer("sequence_first", made(SequenceFirst), num_experts=6, **SEQUENCES),
]
