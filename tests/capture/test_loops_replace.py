"""Loops over tokens are replaced while a model is traced, and only then."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import moe_export
from moe_export.capture.loops import replace
from moe_export.capture.loops.replace import prove_loops, replaced_loops
from moe_export.errors import UnsupportedModelError
from tests.families.all_families import make_named_model

BAR = 1e-5


def chunk_rule(query, key, value, g, beta, initial_state=None, output_final_state=False, **kwargs):
    """The gated delta rule as a loop over tokens."""
    query = query * query.shape[-1] ** -0.5
    state = value.new_zeros(value.shape[0], value.shape[2], key.shape[3], value.shape[3])
    outputs = []
    for t in range(query.shape[1]):
        state = state * g[:, t, :, None, None].exp()
        new = beta[:, t, :, None] * (value[:, t] - (key[:, t, :, None] @ state)[:, :, 0])
        state = state + key[:, t, :, :, None] * new[:, :, None]
        outputs.append((query[:, t, :, None] @ state)[:, :, 0])
    return torch.stack(outputs, 1), state if output_final_state else None


def wrong_rule(query, key, value, g, beta, initial_state=None, output_final_state=False, **kwargs):
    """Takes the same arguments, and computes something else."""
    output, state = chunk_rule(query, key, value, g, beta)
    return 2 * output, state


class Attention(nn.Module):
    rule = "chunk_rule"

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(8, 3 * 8 + 2 * 2)

    def forward(self, x, positions=None):
        rows = self.project(x)
        query, key, value = rows[..., :24].unflatten(-1, (3, 2, 4)).unbind(2)
        key = nn.functional.normalize(key, dim=-1)
        g, beta = -rows[..., 24:26].exp(), rows[..., 26:].sigmoid()
        rule = chunk_rule if self.rule == "chunk_rule" else wrong_rule
        return rule(query, key, value, g=g, beta=beta, positions=positions)[0]


class WrongAttention(Attention):
    rule = "wrong_rule"


def trace(model, *args):
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = tuple(axes for _ in args)
    with torch.no_grad():
        return torch.export.export(model, args, dynamic_shapes=shapes, strict=False)


def targets(program):
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_a_loop_is_one_operator_and_right_at_other_lengths():
    torch.manual_seed(0)
    model = Attention().eval()
    positions = torch.zeros(2, 5)
    with replaced_loops(model) as sites:
        program = trace(model, torch.randn(2, 5, 8), positions)
    assert targets(program).count("moe_export.gated_linear_attention.default") == 1
    (remark,) = prove_loops(sites)
    assert "chunk_rule loops over the tokens and is exported as a Scan" in remark
    assert "the gated delta rule, as was shown at up to 130 tokens" in remark
    for batch, length in ((3, 2), (2, 90)):
        x, positions = torch.randn(batch, length, 8), torch.zeros(batch, length)
        with torch.no_grad():
            difference = program.module()(x, positions) - model(x)
        assert difference.abs().max() <= BAR


def test_eager_keeps_its_function_and_gets_it_back():
    model = Attention().eval()
    x = torch.randn(2, 5, 8)
    expected, function = model(x), chunk_rule
    with replaced_loops(model) as sites:
        assert torch.equal(model(x), expected)
        assert chunk_rule is not function
    assert chunk_rule is function
    assert prove_loops(sites) == []  # nothing was traced


def test_a_function_that_is_taken_for_what_it_is_not_is_refused():
    model = WrongAttention().eval()
    with replaced_loops(model) as sites:
        trace(model, torch.randn(2, 5, 8))
    with pytest.raises(
        UnsupportedModelError, match=r"wrong_rule .*gated delta rule, but it differs"
    ):
        prove_loops(sites)


def test_functions_come_back_after_an_error():
    function = chunk_rule
    with pytest.raises(RuntimeError, match="stop"), replaced_loops(Attention()):
        raise RuntimeError("stop")
    assert chunk_rule is function


def make_lightning():
    pytest.importorskip("transformers")
    from transformers.models.minimax.configuration_minimax import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    config = MiniMaxConfig(
        hidden_size=16,
        num_attention_heads=2,
        head_dim=8,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
    )
    torch.manual_seed(0)
    return MiniMaxLightningAttention(config, 0).eval()


class Layer(nn.Module):
    """Calls lightning attention as a decoder layer does."""

    def __init__(self):
        super().__init__()
        self.attention = make_lightning()

    def forward(self, x, mask):
        return self.attention(x, position_embeddings=(x, x), attention_mask=mask, use_cache=False)[
            0
        ]


def test_lightning_attention_loses_its_loop_with_its_mask():
    model = Layer().eval()
    with replaced_loops(model) as sites:
        program = trace(model, torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.int64))
    assert "forward" not in model.attention.__dict__
    (remark,) = prove_loops(sites)
    assert "MiniMaxLightningAttention" in remark
    assert "300 tokens" in remark
    x, mask = torch.randn(2, 300, 16), torch.ones(2, 300, dtype=torch.int64)
    mask[1, :7] = 0
    with torch.no_grad():
        assert (program.module()(x, mask) - model(x, mask)).abs().max() <= BAR


def test_lightning_attention_that_looks_at_positions_is_refused():
    model = Layer().eval()
    forward = type(model.attention).forward

    def with_positions(
        self, hidden_states, position_embeddings, attention_mask, past_key_values=None, **kwargs
    ):
        hidden_states = hidden_states + position_embeddings[0]
        return forward(self, hidden_states, position_embeddings, attention_mask, past_key_values)

    model.attention.forward = with_positions.__get__(model.attention)
    with replaced_loops(model) as sites:
        trace(model, torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.int64))
    with pytest.raises(UnsupportedModelError, match="Lightning Attention, but it differs"):
        prove_loops(sites)


def test_a_cache_keeps_the_models_own_loop():
    """What no proof can vary is not replaced, and left to the refusal of loops."""
    model = make_lightning()
    with replaced_loops(model) as sites:
        (site,) = [s for s in sites if s.form is replace.LIGHTNING_ATTENTION]
        arguments = {"hidden_states": torch.randn(1, 2, 16), "past_key_values": object()}
        assert replace.call_key(site.form, arguments) is None


@pytest.mark.slow
def test_a_loop_of_no_known_form_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(replace, "FORMS", ())
    with pytest.raises(
        UnsupportedModelError, match=r"loops over its input .*for index in range\(seq_len\)"
    ):
        moe_export.build(make_named_model("jamba"), output=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
