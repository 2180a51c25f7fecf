"""Layers of anyone's: recognized whatever their spelling, or refused with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moe_export.errors import UnsupportedModelError
from moe_export.ops.spec import GroupedExperts
from moe_export.recognize.block import bound
from moe_export.recognize.unfused import UnfusedExperts
from moe_export.tolerances import LAYER_TOLERANCE
from tests.recognize.common import (
    Around,
    Wrapped,
    assert_right_or_refused,
    find_blocks,
    fresh_inputs,
    largest_error,
    rows,
)
from tests.recognize.layers import (
    RECOGNIZED,
    REFUSED,
    RIGHT_OR_REFUSED,
    E,
    GateModuleStyle,
    H,
    MixtralStyle,
)


@pytest.fixture(scope="module", params=RECOGNIZED)
def recognized(request):
    """A row of the table, its model and the model's block."""
    layer, shape, experts, top_k = RECOGNIZED[request.param]
    torch.manual_seed(0)
    model = Wrapped(layer()).eval()
    (block,) = find_blocks(model, shape)
    return model, shape, experts, top_k, block


def batch(shape, count, seed=3):
    """``count`` tokens with as many axes as ``shape``."""
    leading = (count,) if len(shape) == 2 else (1, count)
    return rows(*leading, seed=seed)


def test_form_of_the_experts(recognized):
    _, _, experts, _, block = recognized
    assert block.path == "block.moe"
    assert block.experts.num_experts == E
    if isinstance(experts, str):
        assert isinstance(block.experts, UnfusedExperts)
        assert block.experts.to_onnx()["operators"] == experts
    else:
        assert isinstance(block.experts, GroupedExperts)
        assert {key: getattr(block.experts, key) for key in experts} == experts


def test_proof_reaches_every_expert(recognized):
    *_, block = recognized
    assert block.proof.experts_reached == E
    assert block.proof.max_error <= LAYER_TOLERANCE
    assert min(block.proof.tokens) == 1
    assert max(block.proof.tokens) >= 1024


def test_route_gives_k_experts(recognized):
    _, shape, _, top_k, block = recognized
    with bound([block]), torch.no_grad():
        ids, weights = block.route(batch(shape, 31))
    assert ids.shape == weights.shape == (31, top_k)
    assert 0 <= int(ids.min()) <= int(ids.max()) < E


@pytest.mark.parametrize("count", [1, 2, 29, 1500])
def test_equals_eager_on_other_inputs(recognized, count):
    model, shape, *_, block = recognized
    assert largest_error([block], model, batch(shape, count)) <= LAYER_TOLERANCE
    assert largest_error([block], model, 5 * batch(shape, count, 4)) <= LAYER_TOLERANCE


def test_model_is_restored(recognized):
    model, shape, *_, block = recognized
    names, x = set(model.state_dict()), batch(shape, 6)
    with torch.no_grad():
        expected = model(x)
        with bound([block]) as calls:
            model(x)
        again = model(x)
    assert calls == {"block.moe": 1}
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
    assert set(model.state_dict()) == names


@pytest.mark.parametrize("name", ["mixtral", "switch", "dense", "tanh experts"])
def test_exports_with_dynamic_shapes(name):
    layer, shape, *_ = RECOGNIZED[name]
    model = Wrapped(layer()).eval()
    blocks = find_blocks(model, shape)
    axes = {n: torch.export.Dim(f"axis{n}", min=1, max=4096) for n in range(len(shape) - 1)}
    with bound(blocks), torch.no_grad():
        exported = torch.export.export(model, (torch.randn(shape),), dynamic_shapes=(axes,))
    assert sum("nonzero" in str(n.target) for n in exported.graph.nodes) == 0
    for count in (1, 40):
        x = batch(shape, count)
        with torch.no_grad():
            torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    layer, shape, reason = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match=f"(?s)block.moe.*{reason}") as caught:
        find_blocks(Wrapped(layer()), shape)
    assert "register_block" in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", RIGHT_OR_REFUSED)
def test_is_right_or_refused(name):
    layer, shape = RIGHT_OR_REFUSED[name]
    torch.manual_seed(0)
    assert_right_or_refused(Around(layer()), shape, fresh_inputs())


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


def test_names_the_layer_that_is_refused():
    model = nn.Sequential(GateModuleStyle(), REFUSED["noise in eval"][0]())
    with pytest.raises(UnsupportedModelError, match=r"^1 \(Noisy\)"):
        find_blocks(model, (9, H))
