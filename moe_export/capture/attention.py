"""Attention in a form that reads keys and values once, however many heads share them.

transformers repeats them for every head that shares them, which a graph then does at each step for
the whole cache; ONNX Runtime's fusions besides transpose them there and back. Here the heads that
share keys become rows of one product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Attention = Callable[..., Tensor]


@contextmanager
def heads_as_rows() -> Iterator[None]:
    """Trace attention with a mask so, and everything else as before."""
    from transformers.exporters import utils
    from transformers.integrations import sdpa_attention

    patches = utils._PATCHES["dynamo"]  # installed last, so that this one is asked first
    repeat = sdpa_attention.repeat_kv
    patches.append(
        (
            "torch.nn.functional",
            "scaled_dot_product_attention",
            lambda attention: _grouped(attention, repeat),
        )
    )
    sdpa_attention.repeat_kv = lambda states, times: states
    try:
        yield
    finally:
        sdpa_attention.repeat_kv = repeat
        patches.pop()


def _grouped(attention: Attention, repeat: Callable[[Tensor, int], Tensor]) -> Attention:
    """``attention``, or the same by ``attend`` where that is able to."""

    def patched(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: Any = False,  # noqa: ANN401 - a symbol while tracing
        scale: float | None = None,
        **kwargs: Any,  # noqa: ANN401 - passed on
    ) -> Tensor:
        if attn_mask is not None and dropout_p == 0.0 and _fits(query, key, value, attn_mask):
            return attend(query, key, value, attn_mask, scale)
        if not kwargs.get("enable_gqa") and query.dim() == key.dim() == 4:
            times = query.shape[1] // key.shape[1]
            if times > 1:
                key, value = repeat(key, times), repeat(value, times)
        return attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs)

    return patched


def _fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> bool:
    if not query.dim() == key.dim() == value.dim() == mask.dim() == 4:
        return False
    heads, shared = query.shape[1], key.shape[1]
    counts = (heads, shared, value.shape[1], mask.shape[1])
    if not all(isinstance(count, int) for count in counts):
        return False
    return heads % shared == 0 and value.shape[1] == shared and mask.shape[1] in (1, heads)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None = None
) -> Tensor:
    """Softmax of scaled scores and a mask, times the values.

    Args:
        query: ``[B, H, S, D]``.
        key: ``[B, G, T, D]``, of which each of G is shared by H / G heads that follow each other.
        value: ``[B, G, T, V]``.
        mask: ``[B or 1, H or 1, S or 1, T]``: added to the scores, or true where a key is seen.
        scale: Of the scores; one over the root of D if left out.

    Returns:
        ``[B, H, S, V]``; zeros for a row that sees no key: false, or infinity below, for all.
    """
    batch, heads, length, width = query.shape
    shared = key.shape[1]
    times, total = heads // shared, key.shape[2]
    torch._check(value.shape[2] == total)
    torch._check(mask.shape[3] == total)
    lowest = torch.finfo(query.dtype).min
    if mask.dtype == torch.bool:
        seen, mask = mask.to(query.dtype), (~mask).to(query.dtype) * lowest
    else:
        seen = (mask > lowest).to(query.dtype)
    blind = seen.sum(dim=-1, keepdim=True) < 1
    rows = (query * (width**-0.5 if scale is None else scale)).reshape(
        batch, shared, times * length, width
    )
    scores = (rows @ key.transpose(2, 3)).reshape(batch, shared, times, length, total)
    by_head = mask.unflatten(1, (shared, times)) if mask.shape[1] != 1 else mask.unsqueeze(1)
    shares = (scores + by_head).softmax(dim=-1)
    summed = shares.reshape(batch, shared, times * length, total) @ value
    found = summed.reshape(batch, heads, length, value.shape[3])
    return torch.where(blind, torch.zeros((), dtype=found.dtype), found)
