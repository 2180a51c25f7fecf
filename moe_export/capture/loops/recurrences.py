"""Recurrences over tokens as PyTorch operators, so that tracing sees one node instead of a loop.

What is here is their meaning, token by token; ``chunked_scan.py`` and ``token_scan.py`` write them
as ONNX.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("moe_export::gated_linear_attention", mutates_args=())
def gated_linear_attention(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Linear attention over a state that decays, with the delta rule or without.

    Per token and head, with ``S`` the state::

        S = exp(decay)[:, None] * S
        new = beta * (value - key @ S)      # the delta rule; without beta, new = value
        S = S + outer(key, new)
        output = query @ S

    Yang et al., "Gated Delta Networks", arXiv:2412.06464; with a decay per channel Kimi Delta
    Attention, arXiv:2510.26692; without beta Lightning Attention, arXiv:2401.04658.

    Args:
        query: ``[B, T, N, K]`` float32, scaled.
        key: ``[B, T, N, K]``.
        value: ``[B, T, N, V]``.
        decay: Its natural logarithm, at most 0: ``[B, T, N, K]``, or ``[B, T, N, 1]`` for all.
        beta: ``[B, T, N]``, how much of the old value is overwritten; None without the delta rule.
        state: ``[B, N, K, V]``, before the first token.

    Returns:
        ``[B, T, N, V]``, and the state behind the last token.
    """
    output = torch.empty_like(value)
    for t in range(query.shape[1]):
        state = state * decay[:, t, :, :, None].exp()
        new = value[:, t]
        if beta is not None:
            new = beta[:, t, :, None] * (new - (key[:, t, :, None] @ state)[:, :, 0])
        state = state + key[:, t, :, :, None] * new[:, :, None]
        output[:, t] = (query[:, t, :, None] @ state)[:, :, 0]
    return output, state.clone()


@gated_linear_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    del query, key, decay, beta
    return value.new_empty(value.shape), state.new_empty(state.shape)


@torch.library.custom_op("moe_export::selective_scan", mutates_args=())
def selective_scan(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The state space of Mamba, whose step and matrices depend on the token.

    Per token and channel, with ``S`` the state::

        S = exp(step * a) * S + step * b * x
        output = S @ c

    Gu and Dao, "Mamba", arXiv:2312.00752, algorithm 2.

    Args:
        x: ``[B, T, D]`` float32.
        step: ``[B, T, D]``, above 0.
        a: ``[D, N]``, below 0.
        b: ``[B, T, N]``.
        c: ``[B, T, N]``.
        state: ``[B, D, N]``, before the first token.

    Returns:
        ``[B, T, D]``, and the state behind the last token.
    """
    output = torch.empty_like(x)
    for t in range(x.shape[1]):
        now = step[:, t, :, None]
        state = (now * a).exp() * state + now * b[:, t, None] * x[:, t, :, None]
        output[:, t] = (state @ c[:, t, :, None])[..., 0]
    return output, state.clone()


@selective_scan.register_fake
def _(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    del step, a, b, c
    return x.new_empty(x.shape), state.new_empty(state.shape)
