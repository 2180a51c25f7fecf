"""One plain top-2 layer; what an expert computes is different each time."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.zoo.layer import ROWS, H, ZooLayer, made

WIDTH = 20


class Layer(nn.Module):
    def __init__(self, expert, num_experts=6):
        super().__init__()
        self.gate = nn.Linear(H, num_experts)
        self.experts = nn.ModuleList(expert() for _ in range(num_experts))

    def forward(self, x):
        weights, ids = torch.topk(F.softmax(self.gate(x), dim=-1), 2)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(x)
        for e in range(len(self.experts)):
            rows, nth = torch.where(ids == e)
            if rows.shape[0] > 0:
                out.index_add_(0, rows, weights[rows, nth, None] * self.experts[e](x[rows]))
        return out


class Activated(nn.Module):
    def __init__(self, activation, bias=True):
        super().__init__()
        self.fc1 = nn.Linear(H, WIDTH, bias=bias)
        self.fc2 = nn.Linear(WIDTH, H, bias=bias)
        self.activation = activation

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class GeGLU(nn.Module):
    """Value first, gate second, in one linear with bias; exact GELU."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(H, 2 * WIDTH)
        self.out = nn.Linear(WIDTH, H)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))


class ReGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(H, WIDTH), nn.Linear(H, WIDTH), nn.Linear(WIDTH, H)

    def forward(self, x):
        return self.c(self.a(x) * self.b(x).relu())


class Deep(nn.Sequential):
    """Three linears, two activations."""

    def __init__(self):
        super().__init__(
            nn.Linear(H, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 28), nn.SiLU(), nn.Linear(28, H)
        )


class InnerNorm(nn.Module):
    """LayerNorm between activation and second linear."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = (
            nn.Linear(H, WIDTH),
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, H),
        )

    def forward(self, x):
        return self.down(self.norm(F.gelu(self.up(x))))


class PreNormResidual(nn.Module):
    """A block of its own: x + FFN(LayerNorm(x))."""

    def __init__(self):
        super().__init__()
        self.ln = nn.LayerNorm(H)
        self.ff = nn.Sequential(
            nn.Linear(H, WIDTH), nn.ReLU(), nn.Dropout(0.1), nn.Linear(WIDTH, H)
        )

    def forward(self, x):
        return x + self.ff(self.ln(x))


class Scaled(nn.Module):
    """A learned scale per expert, and one per channel."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(H, WIDTH), nn.Linear(WIDTH, H)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.gamma = nn.Parameter(torch.ones(H))

    def forward(self, x):
        return self.scale * self.down(F.relu(self.up(x))) * self.gamma


class SoftmaxHidden(nn.Module):
    """A memory: keys, softmax, values."""

    def __init__(self):
        super().__init__()
        self.keys = nn.Parameter(torch.randn(WIDTH, H))
        self.values = nn.Parameter(torch.randn(WIDTH, H))

    def forward(self, x):
        return F.softmax(x @ self.keys.t() / H**0.5, dim=-1) @ self.values


class Bilinear(nn.Module):
    """No activation: the product of two linears."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(H, WIDTH, bias=False)
        self.right = nn.Linear(H, WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, H, bias=False)

    def forward(self, x):
        return self.out(self.left(x) * self.right(x))


def relu_squared(x):
    return torch.square(F.relu(x))


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def activated(function, **arguments):
    return lambda: Activated(function, **arguments)


EXPERTS = {
    "gelu_tanh_experts": activated(nn.GELU(approximate="tanh")),
    "relu_squared_experts": activated(relu_squared, bias=False),
    "silu_experts": activated(F.silu),
    "tanh_experts": activated(torch.tanh),
    "leaky_relu_experts": activated(nn.LeakyReLU(0.2)),
    "elu_experts": activated(nn.ELU()),
    "quick_gelu_experts": activated(quick_gelu),
    "softplus_experts": activated(F.softplus),
    "geglu_experts": GeGLU,
    "reglu_experts": ReGLU,
    "bilinear_experts": Bilinear,
    "deep_experts": Deep,
    "inner_norm_experts": InnerNorm,
    "pre_norm_residual_experts": PreNormResidual,
    "scaled_experts": Scaled,
    "linear_experts": lambda: nn.Linear(H, H),
    "memory_experts": SoftmaxHidden,
}

LAYERS = [
    ZooLayer(name, made(Layer, expert=expert), num_experts=6, **ROWS)
    for name, expert in EXPERTS.items()
]
