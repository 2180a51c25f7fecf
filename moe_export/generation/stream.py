"""The loop of generation: one run of the graph per new token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moe_export.errors import MoeExportError, UsageError
from moe_export.generation.decoder import Decoder
from moe_export.generation.prompts import Prompts
from moe_export.generation.sampling import Sampling, choose_tokens
from moe_export.generation.spec import LOGITS
from moe_export.runners.arrays import Array

# Positions of a prompt, over all rows, in one run: bounds the memory of logits and attention.
_PREFILL_POSITIONS = 2048


@dataclass(frozen=True)
class StopRule:
    """When rows end.

    Attributes:
        max_new_tokens: At most this many tokens per row.
        eos_token_ids: Any of these ends a row.
        fill_id: What a row that has ended gives.
    """

    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    fill_id: int

    def __post_init__(self) -> None:
        most = self.max_new_tokens
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise UsageError(f"max_new_tokens must be a whole number above 0; found {most!r}")


def stream_tokens(
    decoder: Decoder,
    prompts: Prompts,
    sampling: Sampling,
    stop: StopRule,
    *,
    random: np.random.Generator,
    in_parts: bool,
) -> Iterator[Array]:
    """Tokens as they come.

    Args:
        decoder: With an empty cache, for as many rows as the prompts have.
        prompts: The rows.
        sampling: How tokens are chosen.
        stop: When to end.
        random: Draws tokens.
        in_parts: Run a long prompt in several parts; not for a model whose tokens compete.

    Yields:
        ``[B]`` int64, the next token of every row, the fill id where it has ended.
    """
    logits = _prefill(decoder, prompts, in_parts=in_parts)
    rows = np.arange(len(logits))
    seen = np.zeros(logits.shape, bool)
    for row, (ids, mask) in enumerate(zip(prompts.ids, prompts.mask, strict=True)):
        seen[row, ids[mask == 1]] = True
    ended = np.zeros(len(logits), bool)
    for count in range(stop.max_new_tokens):
        if np.isnan(logits).any():
            raise MoeExportError(f"the model's logits of new token {count + 1} are not numbers")
        tokens = np.where(ended, stop.fill_id, choose_tokens(logits, seen, sampling, random))
        yield tokens
        ended |= np.isin(tokens, stop.eos_token_ids)
        if ended.all() or count + 1 == stop.max_new_tokens:
            return
        seen[rows, tokens] = True
        outputs = decoder.step(tokens[:, None], np.ones((len(tokens), 1), np.int64))
        logits = outputs[LOGITS][:, -1]


def _prefill(decoder: Decoder, prompts: Prompts, *, in_parts: bool) -> Array:
    """Logits ``[B, V]`` behind the prompts."""
    batch, length = prompts.ids.shape
    part = max(1, _PREFILL_POSITIONS // batch) if in_parts else length
    logits = np.zeros((batch, 0, 0), np.float32)
    for start in range(0, length, part):
        columns = slice(start, start + part)
        logits = decoder.step(prompts.ids[:, columns], prompts.mask[:, columns])[LOGITS]
    return logits[:, -1]
