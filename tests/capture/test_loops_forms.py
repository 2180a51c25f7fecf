"""Functions that loop over tokens: which are taken for what, and how wrong ones show."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from moe_export.capture.loops.delta_rule import GATED_DELTA_RULE
from moe_export.capture.loops.form import call_arguments, call_key, prove
from moe_export.capture.loops.mamba import SELECTIVE_SCAN

pytest.importorskip("transformers")


def delta_call(*, channels=False, repeats=1, state=None, final=False, normalize=True):
    """Arguments of a call with 2 heads, of which the proof reads shapes and types."""
    heads = 2 * repeats
    return {
        "query": torch.empty(1, 4, 2, 8),
        "key": torch.empty(1, 4, 2, 8),
        "value": torch.empty(1, 4, heads, 6),
        "g": torch.empty(1, 4, heads, 8) if channels else torch.empty(1, 4, heads),
        "beta": torch.empty(1, 4, heads),
        "initial_state": None if state is None else torch.empty(1, heads, 8, 6),
        "output_final_state": final,
        "use_qk_l2norm_in_kernel": normalize,
    }


def compare(function, call):
    return prove(GATED_DELTA_RULE, GATED_DELTA_RULE.compute, function, call)


@pytest.mark.parametrize(
    "name", ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"]
)
@pytest.mark.parametrize(
    "call",
    [
        delta_call(),
        delta_call(repeats=2),
        delta_call(state=True, final=True),
        delta_call(normalize=False),
    ],
    ids=["plain", "grouped heads", "state in and out", "not normalized"],
)
def test_qwen3_next_computes_the_gated_delta_rule(name, call):
    from transformers.models.qwen3_next import modeling_qwen3_next

    proof = compare(getattr(modeling_qwen3_next, name), call)
    assert proof.failure == ""
    assert (proof.longest, proof.max_error > 0) == (130, True)


@pytest.mark.parametrize("name", ["chunk_kimi_delta_attention", "recurrent_kimi_delta_attention"])
def test_kimi_computes_it_with_a_decay_per_channel(name):
    from transformers.models.kimi_linear import modeling_kimi_linear

    call = delta_call(channels=True, final=True)
    assert compare(getattr(modeling_kimi_linear, name), call).failure == ""


def changed_rule(change):
    """The gated delta rule in plain steps, with one thing changed."""

    def rule(query, key, value, g, beta, initial_state, output_final_state, **_):
        if change == "epsilon":
            query, key = (F.normalize(t, dim=-1, eps=1e-6) for t in (query, key))
        else:
            query, key = (t * ((t * t).sum(-1, keepdim=True) + 1e-6).rsqrt() for t in (query, key))
        query = query if change == "scale" else query * query.shape[-1] ** -0.5
        state = value.new_zeros(value.shape[0], value.shape[2], key.shape[3], value.shape[3])
        outputs = []
        for t in range(query.shape[1]):
            if change == "chunks apart" and t % 64 == 0:
                state = torch.zeros_like(state)
            decay = g[:, t, :, None, None].exp()
            state = state if change == "decay after" else state * decay
            read = torch.einsum("bhk,bhkv->bhv", key[:, t], state)
            share = beta[:, t, :, None]
            new = share * value[:, t] - read if change == "beta" else share * (value[:, t] - read)
            state = state + torch.einsum("bhk,bhv->bhkv", key[:, t], new)
            state = state * decay if change == "decay after" else state
            outputs.append(torch.einsum("bhk,bhkv->bhv", query[:, t], state))
        return torch.stack(outputs, 1), state if output_final_state else None

    return rule


def test_another_spelling_is_the_same_rule():
    assert compare(changed_rule(""), delta_call(final=True)).failure == ""


@pytest.mark.parametrize("change", ["epsilon", "scale", "chunks apart", "decay after", "beta"])
def test_a_rule_that_differs_shows(change):
    assert "differs by" in compare(changed_rule(change), delta_call()).failure


def test_a_function_that_fails_or_returns_other_things_shows():
    def fails(**_):
        raise RuntimeError("no kernel")

    assert compare(fails, delta_call()).failure == "fails at 1 tokens: RuntimeError: no kernel"
    rule = changed_rule("")
    assert "differs by inf" in compare(lambda **call: rule(**call)[0], delta_call()).failure


def selective_call(*, softplus=True, final=False):
    return {
        "hidden_states": torch.empty(1, 12, 4),
        "dt": torch.empty(1, 12, 4),
        "A": torch.empty(12, 5),
        "B": torch.empty(1, 5, 4),
        "C": torch.empty(1, 5, 4),
        "D": torch.empty(12),
        "z": torch.empty(1, 12, 4) if softplus else None,
        "delta_bias": torch.empty(12) if softplus else None,
        "delta_softplus": softplus,
        "return_last_state": final,
    }


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("final", [True, False])
def test_jamba_computes_the_selective_scan(softplus, final):
    from transformers.models.jamba.modeling_jamba import mamba_selective_scan

    call = selective_call(softplus=softplus, final=final)
    proof = prove(SELECTIVE_SCAN, SELECTIVE_SCAN.compute, mamba_selective_scan, call)
    assert proof.failure == ""


def test_a_selective_scan_without_its_skip_shows():
    from transformers.models.jamba.modeling_jamba import mamba_selective_scan

    def without_skip(**call):
        return mamba_selective_scan(**{**call, "D": None})

    proof = prove(SELECTIVE_SCAN, SELECTIVE_SCAN.compute, without_skip, selective_call())
    assert "differs by" in proof.failure


def test_keywords_that_a_function_never_looks_at_are_left_out():
    def ignores(x, scale=2, **kwargs):
        return x * scale

    def reads(x, **kwargs):
        return x * kwargs.get("mask", 1)

    assert call_arguments(ignores, (1,), {"mask": 3}) == {"x": 1, "scale": 2}
    assert call_arguments(reads, (1,), {"mask": 3}) == {"x": 1, "mask": 3}


def test_calls_of_one_kind_share_a_proof_whatever_batch_and_length():
    call = delta_call()
    longer = {
        n: t.repeat(2, 3, *[1] * (t.dim() - 2)) if torch.is_tensor(t) else t
        for n, t in call.items()
    }
    assert call_key(GATED_DELTA_RULE, call) == call_key(GATED_DELTA_RULE, longer)
    assert call_key(GATED_DELTA_RULE, call) != call_key(GATED_DELTA_RULE, delta_call(final=True))
    assert call_key(GATED_DELTA_RULE, call) != call_key(GATED_DELTA_RULE, delta_call(repeats=2))


def test_an_argument_that_no_proof_can_vary_gives_no_kind():
    assert call_key(GATED_DELTA_RULE, {**delta_call(), "mask": torch.ones(1)}) is None
    assert call_key(GATED_DELTA_RULE, {**delta_call(), "cache": object()}) is None
