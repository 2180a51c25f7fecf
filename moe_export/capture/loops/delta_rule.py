"""The gated delta rule: Gated DeltaNet (Qwen3-Next) and Kimi Delta Attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_export.capture.loops.form import Arguments, LoopForm

# transformers' epsilon under the root of a key's norm, after flash-linear-attention.
_NORM_EPSILON = 1e-6


def gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,  # noqa: ANN401 - such as a chunk's size, which changes no result
) -> tuple[Tensor, Tensor | None]:
    """What flash-linear-attention's ``chunk_gated_delta_rule`` and ``chunk_kda`` compute.

    Args:
        query: ``[B, T, heads, K]``.
        key: ``[B, T, heads, K]``.
        value: ``[B, T, value_heads, V]``, a multiple of the heads.
        g: Logarithms of the decay, ``[B, T, value_heads]`` or ``[B, T, value_heads, K]``.
        beta: ``[B, T, value_heads]``.
        initial_state: ``[B, value_heads, K, V]``; zeros without it.
        output_final_state: Whether the state behind the last token is returned.
        use_qk_l2norm_in_kernel: Whether queries and keys get the length 1.

    Returns:
        ``[B, T, value_heads, V]`` in the query's type, and the state or None.
    """
    dtype, repeats = query.dtype, value.shape[2] // key.shape[2]
    query, key, value, g, beta = (t.float() for t in (query, key, value, g, beta))
    if use_qk_l2norm_in_kernel:
        query, key = (_normalize(t) for t in (query, key))
    query = query * query.shape[-1] ** -0.5
    if repeats > 1:
        query, key = (t.repeat_interleave(repeats, dim=2) for t in (query, key))
    if initial_state is None:
        state = value.new_zeros(value.shape[0], value.shape[2], key.shape[3], value.shape[3])
    else:
        state = initial_state.float()
    decay = g if g.dim() == 4 else g.unsqueeze(-1)
    output, last = torch.ops.moe_export.gated_linear_attention(
        query, key, value, decay, beta, state
    )
    return output.to(dtype), last if output_final_state else None


def _normalize(rows: Tensor) -> Tensor:
    return rows * torch.rsqrt((rows * rows).sum(-1, keepdim=True) + _NORM_EPSILON)


def _draw(
    arguments: Arguments, batch: int, length: int, generator: torch.Generator
) -> dict[str, Any]:
    def normal(*sizes: int) -> Tensor:
        return torch.randn(batch, *sizes, generator=generator)

    drawn = {name: normal(length, *arguments[name].shape[2:]) for name in ("query", "key", "value")}
    key = torch.nn.functional.normalize(drawn["key"], dim=-1)
    key[:, : length // 2] = key[:, :1]  # as where a token repeats: the state is overwritten
    if arguments.get("use_qk_l2norm_in_kernel"):
        key = key * (2 * normal(length, 1, 1)).exp()  # lengths about that of the epsilon too
    drawn["key"] = key
    # From decays of nearly 1 to such that little is left of the state after one token.
    drawn["g"] = -(normal(length, *arguments["g"].shape[2:]) - 1).exp()
    drawn["beta"] = (2 * normal(length, *arguments["beta"].shape[2:])).sigmoid()
    drawn = {name: tensor.to(arguments[name].dtype) for name, tensor in drawn.items()}
    if (state := arguments.get("initial_state")) is not None:
        drawn["initial_state"] = normal(*state.shape[1:]).to(state.dtype)
    return {**arguments, **drawn}


GATED_DELTA_RULE = LoopForm(
    name="the gated delta rule",
    compute=gated_delta_rule,
    draw=_draw,
    widths={
        "query": (2, 3),
        "key": (2, 3),
        "value": (2, 3),
        "g": (2, 3),
        "beta": (2,),
        "initial_state": (1, 2, 3),
    },
    parameters=frozenset(
        {"query", "key", "value", "g", "beta", "initial_state", "output_final_state"}
    ),
)
