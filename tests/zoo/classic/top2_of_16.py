"""16 experts, top 2, weights not renormalized: Lieber et al. 2024, "Jamba".

p = softmax(x W);  the two largest, as they are
y = sum_i p_i * D_i (silu(G_i x) * U_i x)
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Expert(nn.Module):
    def __init__(self, hidden, width):
        super().__init__()
        self.gate_up = nn.Linear(hidden, 2 * width, bias=False)
        self.down = nn.Linear(width, hidden, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Top2Of16(nn.Module):
    def __init__(self, hidden=24, width=32, num_experts=16, top_k=2):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(hidden, num_experts, bias=False)
        self.experts = nn.ModuleList(Expert(hidden, width) for _ in range(num_experts))

    def forward(self, x):
        flat = x.view(-1, x.size(-1))
        weights, selected = torch.topk(self.router(flat).softmax(dim=-1), self.top_k, dim=-1)
        hits = F.one_hot(selected, len(self.experts)).permute(2, 1, 0)
        y = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts):
            slot, token = torch.where(hits[e])
            if token.shape[0] == 0:
                continue
            y.index_add_(0, token, expert(flat[token]) * weights[token, slot, None])
        return y.view_as(x)
