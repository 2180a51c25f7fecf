"""Experts behind transformers' hook: any form the contract can say, without model names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.block import bound
from moe_export.recognize.experts_hook import has_experts_hook, recognize_hooked_experts
from moe_export.recognize.unfused_hook import UnfusedHookedExperts

transformers = pytest.importorskip("transformers")
from transformers.integrations.moe import use_experts_implementation  # noqa: E402

E, H, INNER = 5, 12, 8


class Config:
    _experts_implementation = "eager"


def make_experts(apply_gate=None, act=torch.nn.functional.silu, **flags):
    """A decorated class whose eager loop follows ``flags``, with random weights and biases."""
    flags = {"has_gate": True, "has_bias": False, "is_transposed": False, **flags}
    rows = 2 * INNER if flags["has_gate"] else INNER
    up_name = "gate_up_proj" if flags["has_gate"] else "up_proj"

    class Experts(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.num_experts, self.act_fn = E, act
            self.post_expert_norm = nn.RMSNorm(H)
            shapes = {up_name: (E, rows, H), "down_proj": (E, H, INNER)}
            for name, (e, n, k) in shapes.items():
                shape = (e, k, n) if flags["is_transposed"] else (e, n, k)
                setattr(self, name, nn.Parameter(torch.randn(shape) / 3))
                if flags["has_bias"]:
                    setattr(self, f"{name}_bias", nn.Parameter(torch.randn(e, n)))

        def linear(self, x, name, e):
            weight = getattr(self, name)[e]
            y = x @ weight if flags["is_transposed"] else x @ weight.T
            return y + getattr(self, f"{name}_bias")[e] if flags["has_bias"] else y

        def forward(self, hidden_states, top_k_index, top_k_weights):
            out = torch.zeros_like(hidden_states)
            for e in range(E):
                token, slot = (top_k_index == e).nonzero(as_tuple=True)
                up = self.linear(hidden_states[token], up_name, e)
                h = self._apply_gate(up) if flags["has_gate"] else self.act_fn(up)
                y = self.linear(h, "down_proj", e)
                if flags.get("has_post_expert_norm"):
                    y = self.post_expert_norm(y)
                out.index_add_(0, token, y * top_k_weights[token, slot, None])
            return out

    if apply_gate is not None:
        Experts._apply_gate = apply_gate
    torch.manual_seed(0)
    return use_experts_implementation(**flags)(Experts)(Config())


def interleaved_clamped(self, gate_up):
    gate, up = gate_up[..., ::2], gate_up[..., 1::2]
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(gate * 1.702)


def clamped(self, gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return self.act_fn(gate.clamp(max=10.0)) * up.clamp(-10.0, 10.0)


def clamped_after(self, gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return self.act_fn(gate).clamp(max=5.0) * up.clamp(-5.0, 5.0)


def softcapped(self, gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return 20 * torch.tanh(self.act_fn(gate) * up / 20)


GELU_TANH = nn.GELU(approximate="tanh")
FORMS = {
    "plain": ({}, {"activation": "silu", "alpha": 1.0, "limit": 0.0, "up_offset": 0.0}),
    "gelu": ({"act": nn.GELU()}, {"activation": "gelu"}),
    "gelu tanh": ({"act": GELU_TANH}, {"activation": "gelu_tanh"}),
    "bias": ({"has_bias": True}, {"has_bias": True}),
    "transposed": ({"is_transposed": True}, {"activation": "silu"}),
    "interleaved, clamped": (
        {
            "apply_gate": interleaved_clamped,
            "is_transposed": True,
            "is_concatenated": False,
            "has_bias": True,
        },
        {"alpha": 1.702, "limit": 7.0, "limit_on": "input", "up_offset": 1.0},
    ),
    "clamped": ({"apply_gate": clamped}, {"limit": 10.0, "limit_on": "input"}),
    "clamped after": ({"apply_gate": clamped_after}, {"limit": 5.0, "limit_on": "output"}),
    "ungated": (
        {"has_gate": False, "act": lambda v: v.relu().square(), "has_bias": True},
        {"gated": False, "activation": "relu2"},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_recognizes(form):
    flags, expected = FORMS[form]
    experts = make_experts(**flags)
    assert has_experts_hook(experts)
    block = recognize_hooked_experts("mlp.experts", experts)
    assert {key: getattr(block.experts, key) for key in expected} == expected
    assert block.proof.experts_reached == E


def interleaved_softcapped(self, gate_up):
    gate, up = gate_up[..., ::2], gate_up[..., 1::2]
    return 20 * torch.tanh(self.act_fn(gate) * up / 20)


UNFUSED = {
    "softcapped": {"apply_gate": softcapped},
    "softcapped, bias": {"apply_gate": softcapped, "has_bias": True},
    "softcapped, transposed": {"apply_gate": softcapped, "is_transposed": True, "has_bias": True},
    "softcapped, interleaved": {"apply_gate": interleaved_softcapped, "is_concatenated": False},
    "ungated": {"has_gate": False, "act": lambda v: v.relu().pow(3)},
    "normalized": {"has_post_expert_norm": True},
}


@pytest.mark.parametrize("form", UNFUSED)
def test_other_experts_keep_their_own_code_between_grouped_products(form):
    experts = make_experts(**UNFUSED[form])
    block = recognize_hooked_experts("mlp.experts", experts)
    assert isinstance(block.experts, UnfusedHookedExperts)
    assert block.proof.experts_reached == E
    x, weights = 4 * torch.randn(9, H), torch.rand(9, 2)
    ids = torch.stack([torch.arange(9) % (E + 1), (torch.arange(9) + 2) % E], dim=1)
    with torch.no_grad():
        expected = block.eager_experts(x, ids, weights)
        with bound([block]):
            found = experts(x, ids, weights)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_operators_of_unfused_experts_are_told():
    block = recognize_hooked_experts("mlp.experts", make_experts(apply_gate=softcapped))
    assert block.experts.to_onnx()["operators"] == "mm, silu, mul, div, tanh, mm"


def test_missing_weight_is_refused():
    experts = make_experts()
    del experts.down_proj
    with pytest.raises(UnsupportedModelError, match="no tensor down_proj"):
        recognize_hooked_experts("mlp.experts", experts)


def test_eager_code_that_skips_experts_is_refused():
    """As transformers 5.23's NLLB does: what eager computes is not what its weights say."""
    experts = make_experts()
    loop = type(experts).forward.__wrapped__

    def skips(self, hidden_states, top_k_index, top_k_weights):
        return loop(self, hidden_states, top_k_index, top_k_weights * (top_k_index < 2))

    type(experts).forward.__wrapped__ = skips
    with pytest.raises(UnsupportedModelError, match="eager code differs from the op contract"):
        recognize_hooked_experts("mlp.experts", experts)


def test_family_without_the_hook_is_recognized_by_what_it_computes():
    """Llama 4 scales the experts' input and computes all of them."""
    from moe_export.plan import BuildPlan
    from moe_export.progress import SilentProgress
    from moe_export.recognize.stage import recognize
    from moe_export.sources.source import load_module

    config = transformers.Llama4TextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=16,
        intermediate_size_mlp=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=4,
        moe_layers=[0, 1],
        pad_token_id=0,
    )
    model = transformers.Llama4ForCausalLM(config).eval()
    loaded = load_module(model, None, BuildPlan(output=Path("unused")), source="llama4")
    blocks = recognize(loaded, SilentProgress()).blocks
    assert [block.path for block in blocks] == [f"model.layers.{n}.feed_forward" for n in (0, 1)]
    inputs = {name: tensor.flip(-1) for name, tensor in loaded.inputs.items()}
    expected = loaded.run(inputs)
    with bound(blocks):
        found = loaded.run(inputs)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def test_attention_that_chooses_its_keys_is_not_tried_beside_hooked_experts():
    from moe_export.plan import BuildPlan
    from moe_export.recognize.recorder import recording
    from moe_export.recognize.routing_sites import find_quiet_sites
    from moe_export.sources.source import load_module
    from tests.families.all_families import make_named_model

    model = make_named_model("deepseek_v32")
    loaded = load_module(model, None, BuildPlan(output=Path("unused")), source="deepseek_v32")
    with recording(model) as record:
        loaded.run(loaded.inputs)
    experts = [m for m in model.modules() if has_experts_hook(m)]
    found = find_quiet_sites(model, record, experts)
    assert any("self_attn" in site.path for site in found)
    assert find_quiet_sites(model, record, experts, around_selections=False) == []
