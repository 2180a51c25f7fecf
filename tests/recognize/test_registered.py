"""Layers described by their author."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import moe_export
from moe_export.errors import ContractError, UnsupportedModelError, UsageError
from moe_export.recognize import registry
from tests.recognize.common import find_blocks

H, INNER, E = 16, 12, 5


class Stacked(nn.Module):
    """Stacked gated experts and a shared one; the router is sigmoid top-2, renormalized."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(H, E, bias=False)
        self.gate_up = nn.Parameter(torch.randn(E, 2 * INNER, H) / 4)
        self.down = nn.Parameter(torch.randn(E, H, INNER) / 4)
        self.shared = nn.Linear(H, H)

    def route(self, x):
        weights, ids = self.router(x).sigmoid().topk(2, dim=-1)
        return ids, weights / weights.sum(-1, keepdim=True)

    def forward(self, x):
        ids, weights = self.route(x)
        gate, up = torch.einsum("th,tkih->tki", x, self.gate_up[ids]).chunk(2, dim=-1)
        h = F.silu(gate) * up
        y = torch.einsum("tki,tkhi,tk->th", h, self.down[ids], weights)
        return y + self.shared(x)


def describe(layer, **changes):
    fields = {
        "route": layer.route,
        "up_weight": layer.gate_up,
        "down_weight": layer.down,
        "combine": lambda x, y: y + layer.shared(x),
    }
    return moe_export.BlockDescription(**{**fields, **changes})


@pytest.fixture
def register(monkeypatch):
    """Registers a description of ``Stacked`` for one test."""
    monkeypatch.setattr(registry, "_REGISTERED", {})
    return moe_export.register_block(Stacked)


def test_description_is_proved_and_used(register):
    register(describe)
    (block,) = find_blocks(nn.Sequential(nn.Linear(H, H), Stacked()), (7, H))
    assert (block.path, block.kind) == ("1", "registered")
    assert block.proof.experts_reached == E


def test_exports_with_a_shared_expert(register, tmp_path):
    register(describe)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(H, H), Stacked())
    bundle = moe_export.build(model, torch.randn(7, H), output=tmp_path / "bundle")
    assert bundle.verified
    x = torch.randn(11, H)
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    found = bundle.run({"input": x.numpy()})["output"]
    assert abs(found - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"activation": "gelu"}, "differs from eager by"),
        ({"up_offset": 1.0}, "differs from eager by"),
        ({"combine": None}, "differs from eager by"),
        ({"route": lambda x: (torch.zeros(len(x), 1).long(), torch.ones(len(x), 1))}, "differs"),
    ],
)
def test_wrong_description_is_refused_with_its_error(register, changes, reason):
    register(lambda layer: describe(layer, **changes))
    with pytest.raises(UnsupportedModelError, match=f"1 .*{reason}"):
        find_blocks(nn.Sequential(nn.Linear(H, H), Stacked()), (7, H))


def test_unreached_expert_is_refused(register):
    class Lopsided(Stacked):
        def route(self, x):
            ids, weights = super().route(x)
            return ids.clamp(max=E - 2), weights

    register(describe)
    with pytest.raises(UnsupportedModelError, match="reach 4 of 5 experts"):
        find_blocks(Lopsided(), (7, H))


def test_wrong_shape_names_the_tensor(register):
    register(lambda layer: describe(layer, up_weight=layer.gate_up[:, :INNER]))
    with pytest.raises(ContractError, match=r"experts_c4: up_weight must be \[5, 24, 16\]"):
        find_blocks(Stacked(), (7, H))


def test_function_must_return_a_description(register):
    register(lambda layer: {"up_weight": layer.gate_up})
    with pytest.raises(UsageError, match="must return a BlockDescription; found dict"):
        find_blocks(Stacked(), (7, H))


def test_register_block_takes_a_class_of_modules():
    with pytest.raises(UsageError, match="class of torch modules"):
        moe_export.register_block("Stacked")
