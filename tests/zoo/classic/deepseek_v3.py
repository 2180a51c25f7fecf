"""Bias-balanced sigmoid routing: DeepSeek-AI 2024, "DeepSeek-V3".

s = sigmoid(x W);  c = s + b                      (b only for choosing)
group score = sum of the two largest c; only the best ``topk_group`` groups stay
the top k of c in what stays; weights s_i / (sum s + 1e-20) * scale
y = sum_i w_i * E_i(x) + shared(x)                (256 experts, 8 groups, 4 stay, k = 8)
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Expert(nn.Module):
    def __init__(self, dim, inter_dim):
        super().__init__()
        self.w1 = nn.Linear(dim, inter_dim, bias=False)
        self.w2 = nn.Linear(inter_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, inter_dim, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Gate(nn.Module):
    def __init__(self, dim, num_experts, top_k, n_groups, topk_groups, route_scale):
        super().__init__()
        self.top_k, self.n_groups, self.topk_groups = top_k, n_groups, topk_groups
        self.route_scale = route_scale
        self.weight = nn.Parameter(torch.randn(num_experts, dim))
        self.register_buffer("correction_bias", 0.02 * torch.randn(num_experts))

    def forward(self, x):
        scores = F.linear(x, self.weight).sigmoid()
        choice = scores + self.correction_bias
        grouped = choice.unflatten(-1, (self.n_groups, -1))
        group_scores = grouped.topk(2, dim=-1)[0].sum(dim=-1)
        group = group_scores.topk(self.topk_groups, dim=-1)[1]
        excluded = torch.ones_like(group_scores, dtype=torch.bool).scatter(1, group, False)
        choice = grouped.masked_fill(excluded.unsqueeze(-1), float("-inf")).flatten(1)
        indices = choice.topk(self.top_k, dim=-1)[1]
        weights = scores.gather(1, indices)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return weights * self.route_scale, indices


class DeepseekV3MoE(nn.Module):
    def __init__(
        self,
        dim=24,
        inter_dim=8,
        num_experts=256,
        top_k=8,
        n_groups=8,
        topk_groups=4,
        route_scale=2.5,
        n_shared=1,
    ):
        super().__init__()
        self.dim, self.num_experts = dim, num_experts
        self.gate = Gate(dim, num_experts, top_k, n_groups, topk_groups, route_scale)
        self.experts = nn.ModuleList(Expert(dim, inter_dim) for _ in range(num_experts))
        self.shared = Expert(dim, n_shared * inter_dim)

    def forward(self, x):
        shape = x.size()
        x = x.view(-1, self.dim)
        weights, indices = self.gate(x)
        y = torch.zeros_like(x)
        counts = torch.bincount(indices.flatten(), minlength=self.num_experts).tolist()
        for i in range(self.num_experts):
            if counts[i] == 0:
                continue
            token, top = torch.where(indices == i)
            y[token] += self.experts[i](x[token]) * weights[token, top, None]
        return (y + self.shared(x)).view(shape)
