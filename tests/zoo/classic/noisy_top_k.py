"""Noisy top-k gating: Shazeer et al. 2017, "Outrageously Large Neural Networks".

    H(x) = x W_g + N(0, 1) * softplus(x W_noise)      (the noise only in training)
    G(x) = softmax(keep_top_k(H(x), k))               (-inf where not kept)
    y    = sum_e G(x)_e * E_e(x)

The auxiliary loss is cv(importance)^2 + cv(load)^2, cv the coefficient of variation over experts.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class SparseDispatcher:
    """Cuts a batch into one batch per expert and puts the results together again."""

    def __init__(self, gates):
        expert, self.token = torch.nonzero(gates.t(), as_tuple=True)
        self.gate = gates[self.token, expert]
        self.sizes = (gates > 0).sum(dim=0).tolist()
        self.num_tokens = gates.shape[0]

    def dispatch(self, x):
        return x[self.token].split(self.sizes, dim=0)

    def combine(self, expert_outputs):
        stitched = torch.cat(expert_outputs, dim=0) * self.gate.unsqueeze(1)
        zeros = stitched.new_zeros(self.num_tokens, stitched.shape[1])
        return zeros.index_add(0, self.token, stitched)


class NoisyTopK(nn.Module):
    def __init__(self, hidden=24, width=32, num_experts=8, top_k=3, return_loss=False):
        super().__init__()
        self.num_experts, self.top_k, self.return_loss = num_experts, top_k, return_loss
        self.w_gate = nn.Parameter(torch.zeros(hidden, num_experts))
        self.w_noise = nn.Parameter(torch.zeros(hidden, num_experts))
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, width), nn.ReLU(), nn.Linear(width, hidden))
            for _ in range(num_experts)
        )

    def gates(self, x):
        logits = x @ self.w_gate
        if self.training:
            logits = logits + torch.randn_like(logits) * F.softplus(x @ self.w_noise)
        kept, index = logits.topk(self.top_k, dim=1)
        return torch.zeros_like(logits).scatter(1, index, kept.softmax(dim=1))

    @staticmethod
    def cv_squared(values):
        return values.float().var() / (values.float().mean() ** 2 + 1e-10)

    def forward(self, x):
        gates = self.gates(x)
        dispatcher = SparseDispatcher(gates)
        inputs = dispatcher.dispatch(x)
        y = dispatcher.combine([self.experts[e](inputs[e]) for e in range(self.num_experts)])
        if not self.return_loss:
            return y
        return y, self.cv_squared(gates.sum(0)) + self.cv_squared((gates > 0).sum(0))
