"""Lightning Attention (MiniMax), whose loop over blocks is in the module's own ``forward``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_export.capture.loops.form import Arguments, LoopForm


def lightning_attention(
    module: Any,  # noqa: ANN401 - the attention
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: None = None,
    **_: Any,  # noqa: ANN401 - such as positions, which it has no use for
) -> tuple[Tensor, Tensor]:
    """What transformers' ``MiniMaxLightningAttention.forward`` computes without a cache.

    Args:
        module: Has the projections ``qkv_proj``, ``output_gate`` and ``out_proj``, ``act_fn``,
            ``norm``, ``slope_rate`` ``[heads, 1, 1]``, ``num_attention_heads`` and ``head_dim``.
        hidden_states: ``[B, T, hidden]``.
        attention_mask: ``[B, T]``, zero where a token is left out.
        past_key_values: None.

    Returns:
        ``[B, T, hidden]``, and the state ``[B, heads, head_dim, head_dim]``.
    """
    assert past_key_values is None  # a cache has no proof
    batch, length = hidden_states.shape[:2]
    heads, width = module.num_attention_heads, module.head_dim
    states = module.act_fn(module.qkv_proj(hidden_states))
    if attention_mask is not None:
        states = (states * attention_mask[:, :, None]).to(states.dtype)
    states = states.reshape(batch, length, heads, 3 * width).float()
    query, key, value = torch.split(states, width, dim=3)
    decay = (-module.slope_rate.float()).reshape(1, 1, heads, 1).expand(batch, length, heads, 1)
    state = query.new_zeros(batch, heads, width, width)
    output, last = torch.ops.moe_export.gated_linear_attention(
        query, key, value, decay, None, state
    )
    output = output.reshape(batch, length, heads * width).to(hidden_states.dtype)
    output = module.output_gate(hidden_states).sigmoid() * module.norm(output)
    return module.out_proj(output), last.to(hidden_states.dtype)


def _draw(
    arguments: Arguments, batch: int, length: int, generator: torch.Generator
) -> dict[str, Any]:
    """Positions are drawn too: a version of the module that has a use for them shows."""

    def like(tensor: Tensor) -> Tensor:
        sizes = (batch, length, *tensor.shape[2:])
        if tensor.is_floating_point():
            return torch.randn(sizes, generator=generator).to(tensor.dtype)
        return torch.randint(0, 2, sizes, generator=generator).to(tensor.dtype)

    names = [name for name in _WIDTHS if arguments.get(name) is not None]
    drawn = {
        name: tuple(map(like, value)) if isinstance(value, tuple) else like(value)
        for name, value in ((name, arguments[name]) for name in names)
    }
    return {**arguments, **drawn}


_WIDTHS = {
    "hidden_states": (2,),
    "position_embeddings": (2,),
    "attention_mask": (),
    "position_ids": (),
}

LIGHTNING_ATTENTION = LoopForm(
    name="Lightning Attention",
    compute=lightning_attention,
    draw=_draw,
    widths=_WIDTHS,
    parameters=frozenset({"hidden_states", "attention_mask", "past_key_values"}),
    attributes=frozenset(
        {
            "qkv_proj", "output_gate", "out_proj", "act_fn", "norm", "slope_rate", "head_dim",
            "num_attention_heads", "block_size",
        }
    ),
    longest=300,  # its blocks have 256 tokens
)  # fmt: skip
