"""A small model that is lowered once: experts of both forms, whose weights tests then round."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from moe_export.capture.stage import capture
from moe_export.lower.stage import LoweredModel, lower
from moe_export.optimize.stage import optimize
from moe_export.pack.model_file import EXACT_NAME, PackedModel, pack
from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress
from moe_export.quantize.stage import quantize
from moe_export.recognize.stage import recognize
from moe_export.runners.library import ort_library_path
from moe_export.sources.model import LoadedModel
from moe_export.sources.source import load_module
from moe_export.verify.quantization import EagerCase, run_eager

H, E = 64, 4


class Gated(nn.Module):
    """A gated FFN: one node."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(H, 96)
        self.up = nn.Linear(H, 96)
        self.down = nn.Linear(96, H)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Normed(nn.Module):
    """Not the contract's FFN: two products with a norm between them."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(H, 96), nn.LayerNorm(96), nn.Linear(96, H)

    def forward(self, x):
        return self.down(self.norm(F.gelu(self.up(x))))


class Layer(nn.Module):
    """Softmax of the two best; a loop over the experts."""

    def __init__(self, expert):
        super().__init__()
        self.gate = nn.Linear(H, E, bias=False)
        self.experts = nn.ModuleList(expert() for _ in range(E))

    def forward(self, x):
        weights, ids = self.gate(x).softmax(-1).topk(2, dim=-1)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(ids == e)
            y.index_add_(0, token, expert(x[token]) * weights[token, slot, None])
        return y


class Model(nn.Module):
    """A layer of either form; the first is called twice."""

    def __init__(self):
        super().__init__()
        self.gated, self.normed = Layer(Gated), Layer(Normed)
        self.head = nn.Linear(H, 5)

    def forward(self, x):
        x = x + self.gated(x)
        x = x + self.normed(x)
        return self.head(x + self.gated(x))


PATHS = ("gated", "gated#2", "normed")


@dataclass(frozen=True)
class Exported:
    """The model, its float32 graph, and eager's outputs."""

    loaded: LoadedModel
    lowered: LoweredModel
    library: Path

    def plan(self, **options) -> BuildPlan:
        """A plan for it."""
        return BuildPlan(output=Path("unused"), **options)

    def round(self, folder, keep=(), **options) -> PackedModel:
        """Write it with smaller weights."""
        lowered = quantize(self.lowered, self.plan(**options), SilentProgress(), keep)
        return pack(lowered, folder)

    def exact(self, folder) -> PackedModel:
        """Write it in float32, beside another."""
        return pack(self.lowered, folder, name=EXACT_NAME)

    def cases(self, packed) -> list[EagerCase]:
        """Eager on the cases of the sweep."""
        return run_eager(self.loaded, packed, self.plan(), self.library)


def export_model(model: nn.Module) -> Exported:
    """Every stage up to the graph in float32."""
    plan = BuildPlan(output=Path("unused"))
    loaded = load_module(model, torch.randn(6, H), plan, source="model")
    blocks = recognize(loaded, SilentProgress()).blocks
    captured = capture(loaded, blocks, plan, SilentProgress())
    lowered = optimize(lower(captured), plan, SilentProgress())
    return Exported(loaded, lowered, ort_library_path())
