"""A small Mixture-of-Experts classifier in plain PyTorch, for 8 by 8 images of digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Expert(nn.Module):
    """A feed-forward network ``[N, H] -> [N, H]``."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.down = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.nn.functional.gelu(self.up(x)))
        return y


class TopKGating(nn.Module):
    """Chooses ``top_k`` experts per token and weighs them by the softmax of their logits."""

    def __init__(self, hidden_size: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.router = nn.Linear(hidden_size, num_experts, bias=False)
        self.top_k = top_k

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, expert_ids = self.router(x).topk(self.top_k, dim=-1)
        return expert_ids, logits.softmax(dim=-1)


class MoELayer(nn.Module):
    """Routes each row of ``[N, H]`` to its experts: the loop that exporters stumble over."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, num_experts: int, top_k: int
    ) -> None:
        super().__init__()
        self.gate = TopKGating(hidden_size, num_experts, top_k)
        self.experts = nn.ModuleList(
            Expert(hidden_size, intermediate_size) for _ in range(num_experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        expert_ids, expert_weights = self.gate(x)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(expert_ids == e)
            if token.numel() > 0:
                y.index_add_(0, token, expert(x[token]) * expert_weights[token, slot, None])
        return y


class DigitsClassifier(nn.Module):
    """Two MoE layers between linear ones: ``images [N, 64]`` to ``logits [N, 10]``."""

    def __init__(self, hidden_size: int = 64, num_experts: int = 8, top_k: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(64, hidden_size)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(2))
        self.layers = nn.ModuleList(
            MoELayer(hidden_size, 2 * hidden_size, num_experts, top_k) for _ in range(2)
        )
        self.head = nn.Linear(hidden_size, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        logits: Tensor = self.head(x)
        return logits
