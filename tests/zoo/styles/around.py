"""What authors put around the routed experts: shared experts, norms, projections, residuals."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.zoo.layer import ROWS, SEQUENCES, H, ZooLayer, made
from tests.zoo.styles.common import Experts


class SharedGated(nn.Module):
    """Routed experts plus a shared one behind a sigmoid gate (Qwen)."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.gate = nn.Linear(H, num_experts, bias=False)
        self.experts = Experts(num_experts)
        self.shared_expert = nn.Sequential(nn.Linear(H, 40), nn.SiLU(), nn.Linear(40, H))
        self.shared_expert_gate = nn.Linear(H, 1, bias=False)

    def forward(self, x):
        flat = x.view(-1, H)
        weights, ids = self.gate(flat).softmax(-1).topk(2)
        routed = self.experts.combine(flat, weights / weights.sum(-1, keepdim=True), ids)
        shared = torch.sigmoid(self.shared_expert_gate(flat)) * self.shared_expert(flat)
        return (routed + shared).view(x.shape)


class SharedBeside(nn.Module):
    """Two shared experts are averaged with the routed sum."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.gate = nn.Linear(H, num_experts)
        self.routed_experts = Experts(num_experts)
        self.shared_experts = nn.ModuleList(
            nn.Sequential(nn.Linear(H, 16), nn.GELU(), nn.Linear(16, H)) for _ in range(2)
        )

    def forward(self, x):
        weights, ids = torch.topk(self.gate(x), 2)
        routed = self.routed_experts.combine(x, weights.softmax(-1), ids)
        return (routed + sum(expert(x) for expert in self.shared_experts)) / 2


class NormedResidual(nn.Module):
    """LayerNorm before router and experts, an output projection, dropout, a residual."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.norm = nn.LayerNorm(H)
        self.router = nn.Linear(H, num_experts)
        self.experts = Experts(num_experts)
        self.out_proj = nn.Linear(H, H)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        residual, x = x, self.norm(x)
        flat = x.flatten(0, 1)
        values, ids = self.router(flat).topk(2, dim=-1)
        y = self.experts.combine(flat, F.softmax(values, dim=-1), ids)
        return residual + self.dropout(self.out_proj(y)).unflatten(0, x.shape[:2])


class RouterOnNormed(nn.Module):
    """The router sees an RMS-normed input, the experts the input itself; result norm after."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(H))
        self.router = nn.Linear(H, num_experts, bias=False)
        self.experts = Experts(num_experts)
        self.post_norm = nn.RMSNorm(H, eps=1e-6)

    def forward(self, x):
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        probs = self.router(normed).softmax(-1)
        weights, ids = probs.topk(2, dim=-1)
        return self.post_norm(x + self.experts.combine(x, weights, ids))


class Latent(nn.Module):
    """Experts live in a smaller space: down before, up after; the router sees the full width."""

    def __init__(self, num_experts=6, latent=12):
        super().__init__()
        self.gate = nn.Linear(H, num_experts)
        self.to_latent = nn.Linear(H, latent, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(latent, 16), nn.ReLU(), nn.Linear(16, latent))
            for _ in range(num_experts)
        )
        self.from_latent = nn.Linear(latent, H, bias=False)

    def forward(self, x):
        scores, ids = self.gate(x).sigmoid().topk(3, dim=-1)
        scores = scores / (scores.sum(dim=-1, keepdim=True) + 1e-6)
        z = self.to_latent(x)
        out = torch.zeros_like(z)
        for e, expert in enumerate(self.experts):
            token, slot = (ids == e).nonzero(as_tuple=True)
            if token.numel():
                out.index_add_(0, token, scores[token, slot].unsqueeze(-1) * expert(z[token]))
        return self.from_latent(out)


class ZeroCopyConstant(nn.Module):
    """MoE++: besides the FFNs a zero, a copy and a constant expert compete in the same router."""

    def __init__(self, ffn_experts=5):
        super().__init__()
        self.ffn_experts = ffn_experts
        self.router = nn.Linear(H, ffn_experts + 3)
        self.experts = Experts(ffn_experts)
        self.constant = nn.Parameter(torch.randn(H))
        self.mix = nn.Linear(H, 2, bias=False)

    def forward(self, x):
        weights, ids = self.router(x).softmax(-1).topk(2, dim=-1)
        out = self.experts.combine(x, weights, ids)  # ids of the last three meet no expert
        zero, copy, constant = range(self.ffn_experts, self.ffn_experts + 3)
        share = ((ids == copy) * weights).sum(-1, keepdim=True)
        out = out + share * x
        mixed = self.mix(x).softmax(-1)
        blend = mixed[:, :1] * x + mixed[:, 1:] * self.constant
        out = out + ((ids == constant) * weights).sum(-1, keepdim=True) * blend
        return out * (ids != zero).any(dim=-1, keepdim=True)


class IdentityExperts(nn.Module):
    """Some entries of the list are nn.Identity (tokens that need no computation)."""

    def __init__(self, ffn_experts=4, identities=2):
        super().__init__()
        self.gate = nn.Linear(H, ffn_experts + identities)
        experts = list(Experts(ffn_experts)) + [nn.Identity() for _ in range(identities)]
        self.experts = nn.ModuleList(experts)

    def forward(self, x):
        weights, ids = self.gate(x).softmax(-1).topk(2, dim=-1)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(ids == e)
            out.index_add_(0, token, expert(x[token]) * weights[token, slot, None])
        return out


class LowRankMixture(nn.Module):
    """Mixture of LoRA: a frozen linear for all, and per expert a low-rank difference."""

    def __init__(self, num_experts=6, rank=4, alpha=8.0):
        super().__init__()
        self.base = nn.Linear(H, H).requires_grad_(False)
        self.router = nn.Linear(H, num_experts, bias=False)
        self.lora_a = nn.Parameter(torch.randn(num_experts, rank, H))
        self.lora_b = nn.Parameter(torch.randn(num_experts, H, rank))
        self.scaling = alpha / rank

    def forward(self, x):
        top, ids = self.router(x).topk(2, dim=-1)
        gates = torch.zeros(*x.shape[:-1], self.router.out_features, dtype=x.dtype)
        gates = gates.scatter(-1, ids, F.softmax(top, dim=-1))
        low = torch.einsum("bsh,erh->bser", x, self.lora_a)
        delta = torch.einsum("bser,ehr,bse->bsh", low, self.lora_b, gates)
        return self.base(x) + self.scaling * delta


class LoraModules(nn.Module):
    """The same idea with modules: frozen FFN, adapters per expert, top-1."""

    class Adapter(nn.Module):
        def __init__(self, rank=4):
            super().__init__()
            self.a = nn.Linear(H, rank, bias=False)
            self.b = nn.Linear(rank, H, bias=False)

        def forward(self, x):
            return self.b(self.a(x)) * 0.5

    def __init__(self, num_experts=6):
        super().__init__()
        self.ffn = nn.Sequential(nn.Linear(H, 40), nn.GELU(), nn.Linear(40, H))
        self.gate = nn.Linear(H, num_experts)
        self.adapters = nn.ModuleList(self.Adapter() for _ in range(num_experts))

    def forward(self, x):
        prob, chosen = self.gate(x).softmax(-1).max(dim=-1)
        delta = torch.zeros_like(x)
        for e, adapter in enumerate(self.adapters):
            mine = chosen == e
            if torch.any(mine):
                delta[mine] = adapter(x[mine])
        return self.ffn(x) + prob.unsqueeze(-1) * delta


LAYERS = [
    ZooLayer("shared_gated", made(SharedGated), num_experts=6, **SEQUENCES),
    ZooLayer(
        "shared_beside", made(SharedBeside), num_experts=6, experts=("routed_experts",), **ROWS
    ),
    ZooLayer("normed_residual", made(NormedResidual), num_experts=6, **SEQUENCES),
    ZooLayer("router_on_normed", made(RouterOnNormed), num_experts=6, **ROWS),
    ZooLayer("latent", made(Latent), num_experts=6, **ROWS),
    ZooLayer(
        "zero_copy_constant",
        made(ZeroCopyConstant),
        num_experts=5,
        note="three of the router's eight choices are not FFNs",
        **ROWS,
    ),
    ZooLayer(
        "identity_experts",
        made(IdentityExperts),
        num_experts=4,
        note="two further experts are the identity",
        **ROWS,
    ),
    ZooLayer(
        "low_rank_mixture",
        made(LowRankMixture),
        num_experts=6,
        experts=("lora_a", "lora_b"),
        **SEQUENCES,
    ),
    ZooLayer("lora_modules", made(LoraModules), num_experts=6, experts=("adapters",), **SEQUENCES),
]
