"""Whole models with MoE layers in them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.zoo.layer import H, ZooLayer, floats, ids, made
from tests.zoo.styles.common import Experts

VOCABULARY = 40


class TopTwo(nn.Module):
    def __init__(self, num_experts=6):
        super().__init__()
        self.gate = nn.Linear(H, num_experts, bias=False)
        self.experts = Experts(num_experts)

    def forward(self, x):
        tokens = x.reshape(-1, H)
        weights, chosen = self.gate(tokens).softmax(-1).topk(2, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        return self.experts.combine(tokens, weights, chosen).reshape(x.shape)


class StackedTopOne(nn.Module):
    def __init__(self, num_experts=4, width=20):
        super().__init__()
        self.gate = nn.Linear(H, num_experts)
        self.w1 = nn.Parameter(torch.randn(num_experts, H, width))
        self.w2 = nn.Parameter(torch.randn(num_experts, width, H))

    def forward(self, x):
        best, index = self.gate(x).softmax(-1).max(-1)
        one_hot = F.one_hot(index, self.w1.shape[0]).to(x.dtype) * best.unsqueeze(-1)
        h = F.gelu(torch.einsum("bsh,ehf->bsef", x, self.w1))
        return torch.einsum("bsef,efh,bse->bsh", h, self.w2, one_hot)


def dense_ffn():
    return nn.Sequential(nn.Linear(H, 48), nn.GELU(), nn.Linear(48, H))


class Attention(nn.Module):
    def __init__(self, heads=3):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(H, 3 * H), nn.Linear(H, H)

    def forward(self, x):
        b, s, _ = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, s, H))


class Block(nn.Module):
    def __init__(self, ffn):
        super().__init__()
        self.ln1, self.attn, self.ln2, self.ffn = nn.LayerNorm(H), Attention(), nn.LayerNorm(H), ffn

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))


class EveryOther(nn.Module):
    """A small language model: every second block has a MoE layer."""

    def __init__(self, layers=4):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, H)
        self.blocks = nn.ModuleList(
            Block(TopTwo() if i % 2 else dense_ffn()) for i in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(H), nn.Linear(H, VOCABULARY, bias=False)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class TwoKinds(nn.Module):
    """A layer with a list of experts and one with stacked parameters in one model."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Block(TopTwo()), Block(StackedTopOne())

    def forward(self, x):
        return self.second(self.first(x))


class Nested(nn.Module):
    """The MoE layer is deep inside, in a dictionary of towers, one of which has none."""

    def __init__(self):
        super().__init__()
        self.towers = nn.ModuleDict(
            {
                "plain": nn.Sequential(nn.LayerNorm(H), dense_ffn()),
                "sparse": nn.Sequential(nn.LayerNorm(H), nn.Sequential(nn.Linear(H, H), TopTwo())),
            }
        )
        self.merge = nn.Linear(2 * H, H)

    def forward(self, x):
        return self.merge(torch.cat([tower(x) for tower in self.towers.values()], dim=-1))


class WeightSharing(nn.Module):
    """One MoE layer serves two blocks: it is called twice in one forward."""

    def __init__(self):
        super().__init__()
        moe = TopTwo()
        self.blocks = nn.ModuleList([Block(moe), Block(moe)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class PooledClassifier(nn.Module):
    """Patches, two MoE layers, mean over tokens, class logits."""

    def __init__(self, patch=6, tokens=8, classes=10):
        super().__init__()
        self.patch = nn.Linear(patch, H)
        self.position = nn.Parameter(torch.randn(1, tokens, H))
        self.layers = nn.ModuleList(TopTwo(5) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(H) for _ in range(2))
        self.classify = nn.Linear(H, classes)

    def forward(self, images):
        x = self.patch(images.unflatten(1, (self.position.shape[1], -1))) + self.position
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.classify(x.mean(dim=1))


class LossyLayer(TopTwo):
    def forward(self, x):
        tokens = x.reshape(-1, H)
        probs = self.gate(tokens).softmax(-1)
        weights, chosen = probs.topk(2, dim=-1)
        y = self.experts.combine(tokens, weights, chosen).view_as(x)
        return y, probs.mean(dim=0).square().sum() * probs.shape[-1]


class ReturnsLoss(nn.Module):
    """Logits and the sum of the layers' balance losses."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, H)
        self.layers = nn.ModuleList(LossyLayer() for _ in range(2))
        self.head = nn.Linear(H, VOCABULARY)

    def forward(self, input_ids):
        x, total = self.embed(input_ids), 0.0
        for layer in self.layers:
            y, loss = layer(x)
            x, total = x + y, total + loss
        return self.head(x), total


TOKENS = {
    "inputs": ids(VOCABULARY, 2, 6),
    "other_inputs": (ids(VOCABULARY, 1, 1), ids(VOCABULARY, 3, 7), ids(VOCABULARY, 2, 24)),
}
HIDDEN = {
    "inputs": floats(2, 6, H),
    "other_inputs": (floats(1, 1, H), floats(3, 7, H), floats(2, 24, H)),
}

LAYERS = [
    ZooLayer(
        "every_other",
        made(EveryOther),
        num_experts=6,
        moe_layers=2,
        experts=("blocks.1.ffn.experts",),
        **TOKENS,
    ),
    ZooLayer(
        "two_kinds",
        made(TwoKinds),
        num_experts=4,
        moe_layers=2,
        experts=("second.ffn.w1", "second.ffn.w2"),
        note="6 experts in the first layer, 4 in the second",
        **HIDDEN,
    ),
    ZooLayer(
        "nested", made(Nested), num_experts=6, experts=("towers.sparse.1.1.experts",), **HIDDEN
    ),
    ZooLayer(
        "weight_sharing",
        made(WeightSharing),
        num_experts=6,
        moe_layers=2,
        experts=("blocks.0.ffn.experts",),
        note="one module called twice",
        **HIDDEN,
    ),
    ZooLayer(
        "pooled_classifier",
        made(PooledClassifier),
        inputs=floats(4, 48),
        other_inputs=(floats(1, 48), floats(7, 48), floats(33, 48)),
        num_experts=5,
        moe_layers=2,
        experts=("layers.0.experts", "layers.1.experts"),
    ),
    ZooLayer(
        "returns_loss",
        made(ReturnsLoss),
        num_experts=6,
        moe_layers=2,
        coupled=None,
        experts=("layers.0.experts", "layers.1.experts"),
        **TOKENS,
    ),
]
