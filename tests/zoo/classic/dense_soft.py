"""Dense mixture: Jacobs et al. 1991, "Adaptive Mixtures of Local Experts".

y = sum over all e of softmax(x W + b)_e * E_e(x)
"""

from __future__ import annotations

import torch
from torch import nn


class DenseSoft(nn.Module):
    def __init__(self, hidden=24, width=32, num_experts=5):
        super().__init__()
        self.gate = nn.Linear(hidden, num_experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, width), nn.Tanh(), nn.Linear(width, hidden))
            for _ in range(num_experts)
        )

    def forward(self, x):
        weights = self.gate(x).softmax(dim=-1)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
        return (weights.unsqueeze(-1) * outputs).sum(dim=-2)
