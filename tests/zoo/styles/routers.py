"""Routers: how a token is scored, and what a router hands on."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.zoo.layer import ROWS, SEQUENCES, H, ZooLayer, made
from tests.zoo.styles.common import Experts


class CosineRouter(nn.Module):
    """X-MoE: low-rank projection, cosine similarity to expert embeddings, learned temperature."""

    def __init__(self, num_experts=6, low_rank=8):
        super().__init__()
        self.reduce = nn.Linear(H, low_rank, bias=False)
        self.embeddings = nn.Parameter(torch.randn(num_experts, low_rank))
        self.log_temperature = nn.Parameter(torch.tensor(-2.0))
        self.experts = Experts(num_experts)

    def forward(self, x):
        cosine = F.normalize(self.reduce(x), dim=-1) @ F.normalize(self.embeddings, dim=-1).t()
        probs = (cosine / self.log_temperature.exp().clamp(min=0.01)).softmax(dim=-1)
        weights, ids = probs.topk(2, dim=-1)
        return self.experts.combine(x, weights, ids)


class MlpRouter(nn.Module):
    """A small network routes; it returns (weights, ids, logits)."""

    class Router(nn.Module):
        def __init__(self, num_experts):
            super().__init__()
            self.net = nn.Sequential(
                nn.LayerNorm(H), nn.Linear(H, 16), nn.GELU(), nn.Linear(16, num_experts)
            )

        def forward(self, x):
            logits = self.net(x)
            values, ids = logits.topk(2, dim=-1)
            return values.softmax(dim=-1), ids, logits

    def __init__(self, num_experts=6):
        super().__init__()
        self.router = self.Router(num_experts)
        self.experts = Experts(num_experts)

    def forward(self, x):
        weights, ids, _ = self.router(x)
        return self.experts.combine(x, weights, ids)


class DenseRouter(nn.Module):
    """The router returns dense weights [T, E] with zeros, and an auxiliary loss nobody uses."""

    class Router(nn.Module):
        def __init__(self, num_experts):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(num_experts, H))
            self.bias = nn.Parameter(torch.randn(num_experts))

        def forward(self, x):
            probs = F.linear(x, self.weight, self.bias).softmax(-1)
            top, ids = probs.topk(3, dim=-1)
            dense = torch.zeros_like(probs).scatter(1, ids, top / top.sum(-1, keepdim=True))
            return dense, probs.mean(0).square().sum()

    def __init__(self, num_experts=6):
        super().__init__()
        self.router = self.Router(num_experts)
        self.experts = Experts(num_experts)

    def forward(self, x):
        gates, _aux = self.router(x)
        y = torch.zeros_like(x)
        for e in range(len(self.experts)):
            rows = gates[:, e].nonzero().flatten()
            y[rows] += gates[rows, e].unsqueeze(1) * self.experts[e](x[rows])
        return y


class Temperature(nn.Module):
    """ids first, weights second; logits over a temperature; jitter on the input in training."""

    def __init__(self, num_experts=6, temperature=0.5, jitter=0.1):
        super().__init__()
        self.temperature, self.jitter = temperature, jitter
        self.gate = nn.Linear(H, num_experts)
        self.experts = Experts(num_experts)

    def route(self, x):
        if self.training and self.jitter > 0:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        logits = self.gate(x) / self.temperature
        ids = logits.topk(2, dim=-1).indices
        return ids, torch.gather(logits.softmax(dim=-1), 1, ids)

    def forward(self, x):
        flat = x.reshape(-1, H)
        ids, weights = self.route(flat)
        return self.experts.combine(flat, weights, ids).reshape_as(x)


class SqrtSoftplus(nn.Module):
    """Scores sqrt(softplus(logits)), normalized over the chosen, scaled by 1.5."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.gate = nn.Linear(H, num_experts, bias=False)
        self.experts = Experts(num_experts)

    def forward(self, x):
        scores = F.softplus(self.gate(x)).sqrt()
        weights, ids = scores.topk(2)
        return self.experts.combine(x, 1.5 * weights / weights.sum(-1, keepdim=True), ids)


class NearestCentroids(nn.Module):
    """Distance to centroids: the nearest two, weighed by softmax of minus the squared distance."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.centroids = nn.Parameter(torch.randn(num_experts, H))
        self.experts = Experts(num_experts)

    def forward(self, x):
        distance = (x.unsqueeze(1) - self.centroids).pow(2).sum(dim=-1)
        nearest = distance.topk(2, dim=-1, largest=False)
        return self.experts.combine(x, F.softmax(-nearest.values / 8, dim=-1), nearest.indices)


LAYERS = [
    ZooLayer("cosine_router", made(CosineRouter), num_experts=6, **ROWS),
    ZooLayer("mlp_router", made(MlpRouter), num_experts=6, **ROWS),
    ZooLayer("dense_router", made(DenseRouter), num_experts=6, **ROWS),
    ZooLayer("temperature", made(Temperature), num_experts=6, **SEQUENCES),
    ZooLayer("sqrt_softplus", made(SqrtSoftplus), num_experts=6, **ROWS),
    ZooLayer("nearest_centroids", made(NearestCentroids), num_experts=6, **ROWS),
]
