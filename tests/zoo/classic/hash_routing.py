"""Hash layers: Roller et al. 2021, "Hash Layers For Large Sparse Models".

    e = table[token id]   (or table[position mod length]);  y = E_e(x)

The table is drawn once and never trained; there is no gate, and so no weight.
"""

from __future__ import annotations

import torch
from torch import nn


def expert(hidden, width):
    return nn.Sequential(nn.Linear(hidden, width), nn.ReLU(), nn.Linear(width, hidden))


class HashById(nn.Module):
    def __init__(self, hidden=24, width=32, num_experts=6, vocabulary=50):
        super().__init__()
        self.experts = nn.ModuleList(expert(hidden, width) for _ in range(num_experts))
        self.register_buffer("table", torch.randint(num_experts, (vocabulary,)))

    def forward(self, x, token_ids):
        choice = self.table[token_ids]
        y = torch.zeros_like(x)
        for e, ffn in enumerate(self.experts):
            mine = choice == e
            y[mine] = ffn(x[mine])
        return y


class HashByPosition(nn.Module):
    def __init__(self, hidden=24, width=32, num_experts=6, length=32):
        super().__init__()
        self.experts = nn.ModuleList(expert(hidden, width) for _ in range(num_experts))
        self.register_buffer("table", torch.randint(num_experts, (length,)))

    def forward(self, x):
        positions = torch.arange(x.shape[1], device=x.device) % self.table.shape[0]
        choice = self.table[positions]
        y = torch.zeros_like(x)
        for e, ffn in enumerate(self.experts):
            mine = choice == e
            y[:, mine] = ffn(x[:, mine])
        return y
