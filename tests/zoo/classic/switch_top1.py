"""Switch layer: Fedus et al. 2021, "Switch Transformers".

p = softmax(x W) in float32;  e = argmax p
C = max(int(factor * T / E), minimum);  a token is kept if fewer than C earlier tokens chose e
y = x + p_e * E_e(x) if it is kept, else x          (the residual carries dropped tokens)
loss = E * sum_e f_e * P_e,  f_e = fraction of tokens that chose e, P_e = mean probability
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Expert(nn.Module):
    def __init__(self, hidden, width):
        super().__init__()
        self.wi = nn.Linear(hidden, width, bias=False)
        self.wo = nn.Linear(width, hidden, bias=False)

    def forward(self, x):
        return self.wo(F.relu(self.wi(x)))


class SwitchTop1(nn.Module):
    """``report`` adds what was dropped: "dict" or "tuple"."""

    def __init__(
        self,
        hidden=24,
        width=32,
        num_experts=6,
        capacity_factor=1.25,
        min_capacity=1,
        report=None,
    ):
        super().__init__()
        self.num_experts, self.capacity_factor = num_experts, capacity_factor
        self.min_capacity, self.report = min_capacity, report
        self.router = nn.Linear(hidden, num_experts)
        self.experts = nn.ModuleList(Expert(hidden, width) for _ in range(num_experts))

    def forward(self, x):
        tokens = x.reshape(-1, x.shape[-1])
        capacity = max(
            int(self.capacity_factor * tokens.shape[0] / self.num_experts), self.min_capacity
        )
        probs = F.softmax(self.router(tokens).float(), dim=-1)
        weight, chosen = probs.max(dim=-1)
        one_hot = F.one_hot(chosen, self.num_experts)
        position = (one_hot.cumsum(dim=0) - one_hot).gather(1, chosen.unsqueeze(1)).squeeze(1)
        kept = position < capacity

        routed = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            index = torch.nonzero((chosen == e) & kept).flatten()
            if index.numel() > 0:
                routed[index] = expert(tokens[index]) * weight[index].unsqueeze(1).to(x.dtype)
        y = x + routed.reshape(x.shape)
        if self.report is None:
            return y
        dropped = ~kept.reshape(x.shape[:-1])
        loss = self.num_experts * (one_hot.float().mean(0) * probs.mean(0)).sum()
        if self.report == "tuple":
            return y, dropped.sum(), loss
        return {"hidden_states": y, "dropped": dropped, "load_balance_loss": loss}
