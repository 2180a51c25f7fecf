"""Layers with a list of experts: recognized whatever their spelling, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from moe_export.errors import UnsupportedModelError
from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress
from moe_export.recognize.block import bound
from moe_export.recognize.stage import recognize
from moe_export.sources.source import load_module
from moe_export.tolerances import LAYER_TOLERANCE
from tests.recognize.layers import RECOGNIZED, REFUSED, E, GateModuleStyle, H, MixtralStyle


class Wrapped(nn.Module):
    """A model with the layer one level down, behind another one."""

    def __init__(self, layer):
        super().__init__()
        self.embed = nn.Linear(H, H)
        self.block = nn.ModuleDict({"moe": layer})

    def forward(self, x):
        return self.block["moe"](self.embed(x))


def find_blocks(model, shape):
    torch.manual_seed(1)
    plan = BuildPlan(output=Path("unused"))
    loaded = load_module(model, torch.randn(shape), plan, source="test")
    return recognize(loaded, SilentProgress())


@pytest.mark.parametrize("name", RECOGNIZED)
def test_recognizes(name):
    layer, shape, experts, gating = RECOGNIZED[name]
    torch.manual_seed(0)
    model = Wrapped(layer())
    (block,) = find_blocks(model, shape)
    assert block.path == "block.moe"
    assert {key: getattr(block.experts, key) for key in experts} == experts
    assert {key: getattr(block.gating, key) for key in gating} == gating
    assert block.proof.experts_reached == E
    assert block.proof.max_error <= LAYER_TOLERANCE


@pytest.mark.parametrize("name", RECOGNIZED)
def test_lowered_model_runs_in_eager_and_is_restored(name):
    layer, shape, _, _ = RECOGNIZED[name]
    torch.manual_seed(0)
    model = Wrapped(layer()).eval()
    blocks = find_blocks(model, shape)
    names = set(model.state_dict())
    x = torch.randn(shape)
    with torch.no_grad():
        expected = model(x)
        with bound(blocks) as calls:
            found = model(x)
        again = model(x)
    assert calls == {"block.moe": 1}
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(again, expected)
    assert set(model.state_dict()) == names


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    layer, shape, reason = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match=f"(?s)block.moe.*{reason}") as caught:
        find_blocks(Wrapped(layer()), shape)
    assert "register_block" in str(caught.value)
    assert caught.value.exit_code == 3


def test_refuses_a_model_without_experts():
    with pytest.raises(UnsupportedModelError, match="no Mixture-of-Experts layer found in Linear"):
        find_blocks(nn.Linear(H, H), (3, H))


class Heads(nn.Module):
    """Alike modules on one input, without a choice among them: no MoE layer."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(H, H // 4) for _ in range(4))

    def forward(self, x):
        return torch.cat([head(x) for head in self.heads], dim=-1)


def test_heads_are_no_experts():
    (block,) = find_blocks(nn.Sequential(Heads(), GateModuleStyle()), (9, H))
    assert block.path == "1"


class TopKAttentionLayer(nn.Module):
    """Selects by value, holds no experts."""

    def __init__(self):
        super().__init__()
        self.q, self.moe = nn.Linear(H, H), MixtralStyle()

    def forward(self, x):
        scores = self.q(x) @ x.transpose(1, 2)
        kept = scores.topk(2, dim=-1)
        mask = torch.full_like(scores, float("-inf")).scatter(-1, kept.indices, kept.values)
        return x + self.moe(x + mask.softmax(-1) @ x)


def test_decoder_layers_with_sparse_attention_are_no_experts():
    model = nn.Sequential(*(TopKAttentionLayer() for _ in range(2)))
    blocks = find_blocks(model, (2, 5, H))
    assert [block.path for block in blocks] == ["0.moe", "1.moe"]


class Stack(nn.Module):
    """Decoder layers in a list, one of them refused."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_names_the_layer_that_is_refused():
    residual = REFUSED["residual inside"][0]
    with pytest.raises(UnsupportedModelError, match=r"^layers\.1 \(Residual\)"):
        find_blocks(Stack(GateModuleStyle(), residual()), (9, H))


def test_experts_of_unequal_shape_are_refused():
    layer = GateModuleStyle()
    layer.experts[2] = nn.Sequential(nn.Linear(H, 8), nn.ReLU(), nn.Linear(8, H))
    with pytest.raises(UnsupportedModelError):
        find_blocks(Wrapped(layer), (9, H))
