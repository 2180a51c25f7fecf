"""Layers whose eager result cannot be exported faithfully: each must be refused with its path.

Every one sits at ``encoder.ffn`` of a small model, so that the refusal has a path to name.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.zoo.layer import ROWS, H, ZooLayer, made
from tests.zoo.styles.common import Experts


class Around(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.norm = nn.LayerNorm(H)
        self.encoder.ffn = layer()
        self.head = nn.Linear(H, 5)

    def forward(self, x):
        return self.head(x + self.encoder.ffn(self.encoder.norm(x)))


class Base(nn.Module):
    def __init__(self, num_experts=6):
        super().__init__()
        self.gate = nn.Linear(H, num_experts)
        self.experts = Experts(num_experts)

    def logits(self, x):
        return self.gate(x)

    def forward(self, x):
        weights, ids = self.logits(x).softmax(-1).topk(2, dim=-1)
        return self.experts.combine(x, weights, ids)


class CallCounter(Base):
    """The number of calls so far is part of the result."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x) / (1 + 0.01 * self.calls)


class PythonCounter(Base):
    """Round robin: the first expert is shifted by a Python number at every call."""

    def __init__(self):
        super().__init__()
        self.step = 0

    def forward(self, x):
        weights, ids = self.logits(x).softmax(-1).topk(2, dim=-1)
        self.step += 1
        return self.experts.combine(x, weights, (ids + self.step) % len(self.experts))


class MovingAverage(Base):
    """A moving average of the load, updated in eval too, biases the next call's routing."""

    def __init__(self):
        super().__init__()
        self.register_buffer("load", torch.zeros(6))

    def logits(self, x):
        logits = self.gate(x) - self.load
        with torch.no_grad():
            self.load.mul_(0.9).add_(logits.softmax(-1).mean(0))
        return logits


class BatchStatistics(Base):
    """Logits normalized by statistics of the batch, whose running values change in eval."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def logits(self, x):
        logits = self.gate(x)
        self.mean = 0.5 * self.mean + 0.5 * logits.detach().mean(dim=0)
        return logits - self.mean


class DropoutAlways(Base):
    """Dropout that ignores eval mode."""

    def forward(self, x):
        return super().forward(F.dropout(x, 0.2, training=True))


class NoiseAlways(Base):
    """Gate noise that was never switched off."""

    def logits(self, x):
        return self.gate(x) + torch.randn(len(x), 6)


class RandomExperts(Base):
    """Experts drawn by Python's random module."""

    def forward(self, x):
        chosen = [random.randrange(6) for _ in range(len(x))]
        return torch.stack([self.experts[e](row) for e, row in zip(chosen, x, strict=True)])


class RandomSecond(Base):
    """The second expert is drawn with its probability, in eval too."""

    def forward(self, x):
        probs = self.logits(x).softmax(-1)
        first = probs.argmax(-1, keepdim=True)
        second = torch.multinomial(probs.scatter(1, first, 0.0), 1)
        ids = torch.cat([first, second], dim=1)
        return self.experts.combine(x, probs.gather(1, ids), ids)


class DifferentWidths(Base):
    """Every expert has its own intermediate size."""

    def __init__(self):
        super().__init__()
        for e in range(6):
            width = 8 * (e + 1)
            self.experts[e] = nn.Sequential(nn.Linear(H, width), nn.ReLU(), nn.Linear(width, H))


class NumpyExpert(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(H, 20), nn.Linear(20, H)

    def forward(self, x):
        hidden = np.maximum(self.up(x).detach().numpy(), 0.0)
        return self.down(torch.from_numpy(hidden))


class NumpyExperts(Base):
    """Experts compute in NumPy, where nothing can be traced."""

    def __init__(self):
        super().__init__()
        for e in range(6):
            self.experts[e] = NumpyExpert()


class OnlyTwoRun(Base):
    """A bug: routes to six experts, but the loop stops at the number of choices per token."""

    def forward(self, x):
        weights, ids = self.logits(x).softmax(-1).topk(2, dim=-1)
        y = torch.zeros_like(x)
        for e in range(ids.shape[-1]):
            token, slot = torch.where(ids == e)
            y = y.index_add(0, token, weights[token, slot, None] * self.experts[e](x[token]))
        return y


class LateExpertsUnreached(Base):
    """A bug: ids are taken modulo 3, so that experts 3 to 5 never run."""

    def forward(self, x):
        weights, ids = self.logits(x).softmax(-1).topk(2, dim=-1)
        return self.experts.combine(x, weights, ids % 3)


def refused(name, layer, note=""):
    return ZooLayer(
        name,
        made(Around, layer=layer),
        num_experts=6,
        coupled=None,
        experts=("encoder.ffn.experts",),
        note=note,
        **ROWS,
    )


# Exported as it is: the experts that never run are reported.
UNREACHED = refused("late_experts_unreached", LateExpertsUnreached, "three of six never run")

LAYERS = [
    refused("call_counter", CallCounter, "a buffer counts calls"),
    refused("python_counter", PythonCounter, "a Python number counts calls"),
    refused("moving_average", MovingAverage, "a buffer follows the load"),
    refused("batch_statistics", BatchStatistics, "running statistics change in eval"),
    refused("dropout_always", DropoutAlways, "random in eval"),
    refused("noise_always", NoiseAlways, "random in eval"),
    refused("random_experts", RandomExperts, "Python's random chooses"),
    refused("random_second", RandomSecond, "multinomial in eval"),
    refused("different_widths", DifferentWidths, "experts of different shapes"),
    refused("numpy_experts", NumpyExperts, "leaves PyTorch"),
    refused("only_two_run", OnlyTwoRun, "four of six experts never run"),
]
