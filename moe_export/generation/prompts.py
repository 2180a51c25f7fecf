"""Prompts: a batch of rows that are padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_export.errors import UsageError
from moe_export.generation.spec import GenerationSpec
from moe_export.runners.arrays import Array

InputIds = Array | Sequence[Sequence[int]] | Sequence[int]


@dataclass(frozen=True)
class Prompts:
    """A batch.

    Attributes:
        ids: ``[B, S]`` int64.
        mask: ``[B, S]`` int64, 0 for padding, which is on the left.
    """

    ids: Array
    mask: Array


def make_prompts(
    input_ids: InputIds,
    attention_mask: Array | Sequence[Sequence[int]] | None,
    spec: GenerationSpec,
) -> Prompts:
    """Check prompts, and pad rows of different lengths on the left.

    Args:
        input_ids: ``[B, S]``, ``[S]`` for one row, or rows of different lengths without a mask.
        attention_mask: ``[B, S]``; None if nothing is padded.
        spec: Gives the vocabulary and the id that fills a row.

    Raises:
        UsageError: a row is empty or padded elsewhere, an id is not in the vocabulary, or shapes
            differ.
    """
    rows = _rows(input_ids)
    width = max(map(len, rows))
    if attention_mask is None:
        fill = fill_id(spec, spec.eos_token_ids)
        ids = np.array([[fill] * (width - len(row)) + row for row in rows], np.int64)
        mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows], np.int64)
    else:
        mask = np.asarray(attention_mask)
        mask = mask[None] if mask.ndim == 1 else mask
        if {len(row) for row in rows} != {width} or mask.shape != (len(rows), width):
            raise UsageError(
                f"attention_mask is {list(mask.shape)} for rows of {[len(r) for r in rows]} ids; "
                "expected one number per id"
            )
        ids, mask = np.array(rows, np.int64), mask.astype(bool).astype(np.int64)
        _check_padding(mask)
    outside = (ids < 0) | (ids >= spec.vocabulary_size)
    if (outside & (mask == 1)).any():
        row = int(outside.any(axis=1).argmax())
        raise UsageError(
            f"input_ids row {row} has {ids[row][outside[row]][0]}; the vocabulary has ids 0 to "
            f"{spec.vocabulary_size - 1}"
        )
    return Prompts(np.where(outside, 0, ids), mask)


def fill_id(spec: GenerationSpec, eos_token_ids: Sequence[int]) -> int:
    """The id that stands for no token: the padding's, else the end's, else 0."""
    known = (t for t in (spec.pad_token_id, *eos_token_ids) if t is not None)
    return next((token for token in known if token < spec.vocabulary_size), 0)


def _rows(input_ids: InputIds) -> list[list[int]]:
    """Rows as lists of whole numbers."""
    try:
        nested: list[Any] = (
            input_ids.tolist() if isinstance(input_ids, np.ndarray) else list(input_ids)
        )
        if nested and not hasattr(nested[0], "__len__"):
            nested = [nested]
        rows = [[_whole(token) for token in row] for row in nested]
    except TypeError as error:
        raise UsageError(f"input_ids must be [batch, tokens] whole numbers: {error}") from error
    if not rows or not all(rows):
        raise UsageError("input_ids has no row, or a row without a token; each needs one at least")
    return rows


def _whole(token: object) -> int:
    if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
        raise TypeError(f"found {token!r}")
    return int(token)


def _check_padding(mask: Array) -> None:
    for row, kept in enumerate(mask):
        if not kept.any():
            raise UsageError(f"attention_mask row {row} keeps no token")
        if (np.diff(kept) < 0).any():
            raise UsageError(
                f"attention_mask row {row} has padding behind a token: new tokens come behind the "
                "last, so that rows are padded on the left. Leave the mask out and pass rows of "
                "different lengths to have them padded"
            )
