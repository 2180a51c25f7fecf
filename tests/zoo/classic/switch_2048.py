"""Switch scaled to very many experts: Fedus et al. 2021 (Switch-C has 2048 experts).

p = softmax(x W);  e = argmax p;  y = p_e * W2_e relu(W1_e x)      (no capacity here)
"""

from __future__ import annotations

import torch
from torch import nn


class Switch2048(nn.Module):
    def __init__(self, hidden=24, width=4, num_experts=2048):
        super().__init__()
        self.router = nn.Linear(hidden, num_experts, bias=False)
        self.w1 = nn.Parameter(torch.randn(num_experts, hidden, width))
        self.w2 = nn.Parameter(torch.randn(num_experts, width, hidden))

    def forward(self, x):
        probability, expert = self.router(x).softmax(dim=-1).max(dim=-1)
        h = torch.bmm(x.unsqueeze(1), self.w1[expert]).relu()
        return torch.bmm(h, self.w2[expert]).squeeze(1) * probability.unsqueeze(1)
