"""MoE layers as different authors write them: experts behind a gate, and what stands around."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

H, E = 24, 6


def relu_expert():
    return nn.Sequential(nn.Linear(H, 40), nn.ReLU(), nn.Linear(40, H))


def gelu_dropout_expert():
    return nn.Sequential(
        nn.Linear(H, 40, bias=False),
        nn.GELU(approximate="tanh"),
        nn.Dropout(0.3),
        nn.Linear(40, H, bias=False),
    )


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1 = nn.Linear(H, 32, bias=False)
        self.w2 = nn.Linear(32, H, bias=False)
        self.w3 = nn.Linear(H, 32, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class SquareWidth(nn.Module):
    """Hidden and intermediate sizes are equal: shapes do not tell up from down."""

    def __init__(self):
        super().__init__()
        self.second = nn.Linear(H, H)
        self.first = nn.Linear(H, H)

    def forward(self, x):
        return self.second(F.relu(self.first(x)).square())


class MixtralStyle(nn.Module):
    """Softmax over all, top-k, renormalize; loop over every expert with a mask; [B, S, H]."""

    def __init__(self, expert=SwiGLU, top_k=2):
        super().__init__()
        self.gate = nn.Linear(H, E, bias=False)
        self.experts = nn.ModuleList(expert() for _ in range(E))
        self.top_k = top_k

    def forward(self, hidden_states):
        b, s, h = hidden_states.shape
        x = hidden_states.view(-1, h)
        probs = F.softmax(self.gate(x), dim=1, dtype=torch.float)
        weights, chosen = torch.topk(probs, self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(x)
        mask = F.one_hot(chosen, num_classes=E).permute(2, 1, 0)
        for i in range(E):
            idx, top = torch.where(mask[i])
            if top.shape[0] == 0:
                continue
            current = self.experts[i](x[None, top].reshape(-1, h)) * weights[top, idx, None]
            out.index_add_(0, top, current.to(x.dtype))
        return out.reshape(b, s, h)


class MakeMoeStyle(nn.Module):
    """Top-k of the logits scattered into -inf, softmax; boolean masks; [B, S, H]."""

    class Router(nn.Module):
        def __init__(self):
            super().__init__()
            self.top_k = 2
            self.topkroute_linear = nn.Linear(H, E)
            self.noise_linear = nn.Linear(H, E)

        def forward(self, x):
            logits = self.topkroute_linear(x)
            if self.training:
                logits = logits + torch.randn_like(logits) * F.softplus(self.noise_linear(x))
            top, indices = logits.topk(self.top_k, dim=-1)
            sparse = torch.full_like(logits, float("-inf")).scatter(-1, indices, top)
            return F.softmax(sparse, dim=-1), indices

    def __init__(self):
        super().__init__()
        self.router = self.Router()
        self.experts = nn.ModuleList(relu_expert() for _ in range(E))

    def forward(self, x):
        gating, indices = self.router(x)
        out = torch.zeros_like(x)
        flat_x, flat_gating = x.view(-1, H), gating.view(-1, E)
        for i, expert in enumerate(self.experts):
            mask = (indices == i).any(dim=-1).view(-1)
            if mask.any():
                scores = flat_gating[mask, i].unsqueeze(1)
                out.view(-1, H)[mask] += expert(flat_x[mask]) * scores
        return out


class SwitchStyle(nn.Module):
    """Top-1, weighed by its softmax probability; argmax; [T, H]."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(H, E)
        self.ffn = nn.ModuleDict({f"expert_{e}": gelu_dropout_expert() for e in range(E)})

    def forward(self, x):
        probs = self.router(x).softmax(-1)
        best, index = probs.max(dim=-1)
        out = torch.zeros_like(x)
        for e in range(E):
            rows = (index == e).nonzero().squeeze(-1)
            if len(rows):
                out[rows] = best[rows, None] * self.ffn[f"expert_{e}"](x[rows])
        return out


class SigmoidStyle(nn.Module):
    """Sigmoid scores, renormalized and scaled by 2.5; only hit experts; sort for the choice."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(H, 8), nn.Tanh(), nn.Linear(8, E))
        self.experts = nn.ModuleList(SquareWidth() for _ in range(E))

    def forward(self, x):
        scores = self.gate(x).sigmoid()
        values, order = scores.sort(dim=-1, descending=True)
        ids, weights = order[:, :3], values[:, :3]
        weights = 2.5 * weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for e in ids.unique().tolist():
            token, slot = (ids == e).nonzero(as_tuple=True)
            out.index_add_(0, token, weights[token, slot, None] * self.experts[e](x[token]))
        return out


class GateModuleStyle(nn.Module):
    """The gate is a module of its own that returns (weights, indices); no renormalizing."""

    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Linear(H, E, bias=False)

        def forward(self, x):
            return torch.topk(self.weight(x).softmax(-1), 2, sorted=False)

    def __init__(self):
        super().__init__()
        self.gate = self.Gate()
        self.experts = nn.ModuleList(relu_expert() for _ in range(E))

    def forward(self, x):
        weights, ids = self.gate(x)
        out = torch.zeros_like(x)
        for slot in range(2):
            for e, expert in enumerate(self.experts):
                chosen = ids[:, slot] == e
                if chosen.any():
                    out[chosen] += weights[chosen, slot, None] * expert(x[chosen])
        return out


class Residual(GateModuleStyle):
    def forward(self, x):
        return x + super().forward(x)


class Noisy(GateModuleStyle):
    def forward(self, x):
        return super().forward(x) * (1 + 0.01 * torch.rand(()))


class WithLoss(GateModuleStyle):
    def forward(self, x):
        return super().forward(x), torch.zeros(())


class Stateful(GateModuleStyle):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + self.calls)


class Capacity(GateModuleStyle):
    """An expert takes at most three tokens."""

    def forward(self, x):
        weights, ids = self.gate(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = (ids == e).nonzero(as_tuple=True)
            token, slot = token[:3], slot[:3]
            if len(token):
                out.index_add_(0, token, weights[token, slot, None] * expert(x[token]))
        return out


class LargeCapacity(GateModuleStyle):
    """An expert takes at most a hundred tokens: few inputs show it."""

    limit = staticmethod(lambda tokens: 100)

    def forward(self, x):
        weights, ids = self.gate(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = (ids == e).nonzero(as_tuple=True)
            token, slot = token[: self.limit(len(x))], slot[: self.limit(len(x))]
            if len(token):
                out.index_add_(0, token, weights[token, slot, None] * expert(x[token]))
        return out


class CapacityFactor(LargeCapacity):
    """Twice the even share of the tokens: balanced inputs never show it."""

    limit = staticmethod(lambda tokens: int(2.0 * tokens * 2 / E) + 1)


class ExpertChoice(GateModuleStyle):
    """Experts choose tokens."""

    def forward(self, x):
        scores = self.gate.weight(x).softmax(-1)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            weight, token = scores[:, e].topk(min(3, len(x)))
            out.index_add_(0, token, weight[:, None] * expert(x[token]))
        return out


class Dense(GateModuleStyle):
    """Every expert runs on every token; weights that were not chosen are zero."""

    def forward(self, x):
        weights, ids = self.gate(x)
        dense = torch.zeros(len(x), E).scatter(1, ids, weights)
        return sum(dense[:, e, None] * expert(x) for e, expert in enumerate(self.experts))


class NormedInput(GateModuleStyle):
    def forward(self, x):
        return super().forward(F.layer_norm(x, (H,)))


class OddExpert(nn.Module):
    """A residual inside the expert."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(H, 40), nn.Linear(40, H)

    def forward(self, x):
        return x + self.down(F.relu(self.up(x)))


class ResidualExperts(MixtralStyle):
    def __init__(self):
        super().__init__(expert=OddExpert)


class TanhExperts(MixtralStyle):
    def __init__(self):
        super().__init__(
            expert=lambda: nn.Sequential(nn.Linear(H, 40), nn.Tanh(), nn.Linear(40, H))
        )


class ThresholdWeights(GateModuleStyle):
    """Weights are squared where they are used: no value of the layer holds them by token."""

    def forward(self, x):
        weights, ids = self.gate(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = (ids == e).nonzero(as_tuple=True)
            out.index_add_(0, token, weights[token, slot, None] ** 2 * expert(x[token]))
        return out


class StackedParameters(nn.Module):
    """Experts as stacked parameters, gathered per token: traceable, but dense in memory."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(H, E)
        self.up = nn.Parameter(torch.randn(E, H, 40) / 5)
        self.down = nn.Parameter(torch.randn(E, 40, H) / 5)

    def forward(self, x):
        weights, ids = self.gate(x).softmax(-1).topk(2)
        h = torch.einsum("th,tkhi->tki", x, self.up[ids]).relu()
        return torch.einsum("tki,tkih,tk->th", h, self.down[ids], weights)


_RELU = {"gated": False, "activation": "relu", "has_bias": True}

# Layer, input shape, attributes of its ``GroupedExperts`` or operators of its unfused experts, K.
RECOGNIZED = {
    "mixtral": (
        MixtralStyle,
        (2, 5, H),
        {"gated": True, "activation": "silu", "has_bias": False, "intermediate_size": 32},
        2,
    ),
    "makemoe": (MakeMoeStyle, (2, 5, H), _RELU, 2),
    "switch": (
        SwitchStyle,
        (9, H),
        {"gated": False, "activation": "gelu_tanh", "has_bias": False},
        1,
    ),
    "sigmoid": (
        SigmoidStyle,
        (9, H),
        {"gated": False, "activation": "relu2", "has_bias": True, "intermediate_size": H},
        3,
    ),
    "gate module": (GateModuleStyle, (9, H), _RELU, 2),
    "residual inside": (Residual, (9, H), _RELU, 2),
    "loss beside the output": (WithLoss, (9, H), _RELU, 2),
    "dense": (Dense, (9, H), _RELU, 2),
    "normed input": (NormedInput, (9, H), _RELU, 2),
    "residual experts": (ResidualExperts, (2, 5, H), "addmm, relu, add", 2),
    "tanh experts": (TanhExperts, (2, 5, H), "addmm, tanh", 2),
    "stacked parameters": (
        StackedParameters,
        (9, H),
        {"gated": False, "activation": "relu", "has_bias": False},
        2,
    ),
}

# Layer, input shape, and what its refusal must say.
REFUSED = {
    "noise in eval": (Noisy, (9, H), "two answers to one input"),
    "state between calls": (Stateful, (9, H), "two answers to one input"),
}

# Layers that may be refused, but never be wrong, whatever the number of tokens and their crowds.
RIGHT_OR_REFUSED = {
    "capacity": (Capacity, (9, H)),
    "large capacity": (LargeCapacity, (9, H)),
    "capacity factor": (CapacityFactor, (9, H)),
    "expert choice": (ExpertChoice, (9, H)),
    "squared weights": (ThresholdWeights, (9, H)),
}
