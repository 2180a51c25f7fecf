"""Experts choose tokens: Zhou et al. 2022, "Mixture-of-Experts with Expert Choice Routing".

Two implementations differ, so both are here:

    mesh:   s = softmax(x W) over the tokens of a sequence;
            C = min(S, max(1, int(factor * S / E)));  a group is one sequence
    V-MoE:  s = softmax(x W) over the experts;
            C = ceil(factor * T * k / E), rounded up to a multiple of 4, at most T;
            a group is all tokens of the call

    expert e takes its C tokens of largest s;  y_t = sum of s_te E_e(x_t) over those that took t

A token may be taken by several experts or by none; then its y is zero.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class MeshExpertChoice(nn.Module):
    def __init__(self, hidden=24, width=32, num_experts=6, capacity_factor=2.0):
        super().__init__()
        self.num_experts, self.capacity_factor = num_experts, capacity_factor
        self.router = nn.Parameter(torch.randn(hidden, num_experts))
        self.wi = nn.Parameter(torch.randn(num_experts, hidden, width))
        self.wo = nn.Parameter(torch.randn(num_experts, width, hidden))

    def forward(self, x):
        size = x.shape[1]
        capacity = min(size, max(1, int(self.capacity_factor * size / self.num_experts)))
        scores = torch.einsum("bsh,he->bes", x, self.router).softmax(dim=-1)
        gate, index = scores.topk(capacity, dim=-1)  # [B, E, C]
        picked = F.one_hot(index, size).to(x.dtype)  # [B, E, C, S]
        inputs = torch.einsum("becs,bsh->bech", picked, x)
        h = torch.einsum("bech,ehf->becf", inputs, self.wi).relu()
        outputs = torch.einsum("becf,efh->bech", h, self.wo)
        return torch.einsum("becs,bec,bech->bsh", picked, gate, outputs)


class VMoEExpertChoice(nn.Module):
    def __init__(self, hidden=24, width=32, num_experts=6, top_k=1, capacity_factor=1.0):
        super().__init__()
        self.num_experts, self.top_k, self.capacity_factor = num_experts, top_k, capacity_factor
        self.router = nn.Linear(hidden, num_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, width), nn.GELU(), nn.Linear(width, hidden))
            for _ in range(num_experts)
        )

    def capacity(self, tokens):
        share = math.ceil(self.capacity_factor * tokens * self.top_k / self.num_experts)
        return min(tokens, (share + 3) // 4 * 4)

    def forward(self, x):
        tokens = x.reshape(-1, x.shape[-1])
        gate, index = self.router(tokens).softmax(dim=-1).t().topk(self.capacity(len(tokens)))
        y = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            y.index_add_(0, index[e], expert(tokens[index[e]]) * gate[e].unsqueeze(1))
        return y.view_as(x)
