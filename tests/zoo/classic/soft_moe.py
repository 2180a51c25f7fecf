"""Soft MoE: Puigcerver et al. 2023, "From Sparse to Soft Mixtures of Experts".

L = l2(X) (scale * l2(Phi)),  l2(v) = v / sqrt(sum v^2 + 1e-6) over the hidden axis
D = softmax of L over tokens;  C = softmax of L over all E * P slots
slots = D^T X;  Y = C E(slots)                    (slot j belongs to expert j // P)
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


def l2_normalize(x, dim, eps=1e-6):
    return x * torch.rsqrt(x.square().sum(dim=dim, keepdim=True) + eps)


class SoftMoE(nn.Module):
    def __init__(self, hidden=24, width=32, num_experts=4, slots=3):
        super().__init__()
        self.phi = nn.Parameter(torch.randn(hidden, num_experts, slots))
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.w1 = nn.Parameter(torch.randn(num_experts, hidden, width))
        self.b1 = nn.Parameter(torch.randn(num_experts, 1, width))
        self.w2 = nn.Parameter(torch.randn(num_experts, width, hidden))
        self.b2 = nn.Parameter(torch.randn(num_experts, 1, hidden))

    def forward(self, x):
        phi = self.scale * l2_normalize(self.phi, dim=0)
        logits = torch.einsum("bmd,dnp->bmnp", l2_normalize(x, dim=-1), phi)
        dispatch = logits.softmax(dim=1)
        combine = logits.flatten(2).softmax(dim=-1).view_as(logits)
        slots = torch.einsum("bmd,bmnp->bnpd", x, dispatch)
        h = F.gelu(slots @ self.w1 + self.b1)
        return torch.einsum("bnpd,bmnp->bmd", h @ self.w2 + self.b2, combine)
