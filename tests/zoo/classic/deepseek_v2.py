"""Fine-grained experts in groups: DeepSeek-AI 2024, "DeepSeek-V2".

s = softmax(x W) over all routed experts, in float32
group score = max of its s; only the best ``topk_group`` of ``n_group`` groups stay
the top k of what stays, weights scale * s (not renormalized)
y = sum_i scale * s_i * E_i(x) + shared(x)         (160 experts, 8 groups, 3 stay, k = 6)
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class MLP(nn.Module):
    def __init__(self, hidden, width):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    def __init__(self, hidden, num_experts, top_k, n_group, topk_group, scale):
        super().__init__()
        self.top_k, self.n_group, self.topk_group, self.scale = top_k, n_group, topk_group, scale
        self.weight = nn.Parameter(torch.empty(num_experts, hidden).normal_())

    def forward(self, x):
        scores = F.linear(x.float(), self.weight.float()).softmax(dim=-1)
        per_group = scores.view(x.shape[0], self.n_group, -1)
        best = per_group.max(dim=-1).values.topk(self.topk_group, dim=-1, sorted=False).indices
        stays = torch.zeros(x.shape[0], self.n_group, device=x.device).scatter_(1, best, 1)
        allowed = per_group.masked_fill(stays.unsqueeze(-1) == 0, 0.0).flatten(1)
        weight, index = allowed.topk(self.top_k, dim=-1, sorted=False)
        return index, weight * self.scale


class DeepseekV2MoE(nn.Module):
    def __init__(
        self,
        hidden=24,
        width=8,
        num_experts=160,
        top_k=6,
        n_group=8,
        topk_group=3,
        scale=16.0,
        n_shared=2,
    ):
        super().__init__()
        self.gate = Gate(hidden, num_experts, top_k, n_group, topk_group, scale)
        self.experts = nn.ModuleList(MLP(hidden, width) for _ in range(num_experts))
        self.shared_experts = MLP(hidden, n_shared * width)

    def forward(self, hidden_states):
        shape = hidden_states.shape
        index, weight = self.gate(hidden_states.reshape(-1, shape[-1]))
        flat = hidden_states.reshape(-1, shape[-1])
        y = self.routed(flat, index, weight).view(*shape)
        return y + self.shared_experts(hidden_states)

    def routed(self, x, index, weight):
        """Sort the copies by expert, run each expert on its slice, put them back."""
        order = index.flatten().argsort()
        copies = x[order // index.shape[1]]
        counts = torch.bincount(index.flatten(), minlength=len(self.experts)).tolist()
        outputs, start = [], 0
        for e, count in enumerate(counts):
            if count == 0:
                continue
            outputs.append(self.experts[e](copies[start : start + count]))
            start += count
        stacked = torch.cat(outputs, dim=0)
        restored = torch.empty_like(stacked)
        restored[order] = stacked
        return (restored.view(*index.shape, -1) * weight.unsqueeze(-1)).sum(dim=1).to(x.dtype)
