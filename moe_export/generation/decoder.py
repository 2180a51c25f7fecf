"""Step by step through a graph with a key/value cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_export.errors import UsageError
from moe_export.generation.spec import ATTENTION_MASK, INPUT_IDS, POSITION_IDS, GenerationSpec
from moe_export.runners.arrays import Array
from moe_export.runners.onnxruntime import OnnxRuntimeRunner


class Decoder:
    """One batch of rows and its cache, which stays in the runtime's memory.

    Args:
        runner: The session.
        spec: What its graph takes and gives.
        batch: Number of rows.
    """

    def __init__(self, runner: OnnxRuntimeRunner, spec: GenerationSpec, batch: int) -> None:
        self._runner, self._spec = runner, spec
        self._mask = np.zeros((batch, 0), np.int64)
        self._takes = {signature.name for signature in runner.inputs}
        self._cache: dict[str, Any] = {
            c.past: runner.empty_value((batch, c.heads, 0, c.width), c.dtype) for c in spec.caches
        }

    def step(self, input_ids: Array, attended: Array) -> dict[str, Array]:
        """Run the graph on the next tokens, and keep them.

        Args:
            input_ids: ``[B, S]`` int64, the tokens behind those of earlier steps.
            attended: ``[B, S]``, 1 for a token and 0 for padding.

        Returns:
            The outputs by name, without the cache: ``logits`` is ``[B, S, V]``.
        """
        self._mask = np.concatenate([self._mask, attended.astype(np.int64)], axis=1)
        positions = np.maximum(self._mask.cumsum(axis=1) - 1, 0)[:, -input_ids.shape[1] :]
        inputs = {INPUT_IDS: input_ids, ATTENTION_MASK: self._mask, POSITION_IDS: positions}
        given = {name: array for name, array in inputs.items() if name in self._takes}
        presents = [c.present for c in self._spec.caches]
        outputs, kept = self._runner.run_keeping(given, self._cache, presents)
        self._cache = {c.past: kept[c.present] for c in self._spec.caches}
        return outputs

    def cache(self) -> dict[str, Array]:
        """Copies of the cache's tensors ``[B, heads, tokens, width]``, by the input's name."""
        return {name: value.numpy() for name, value in self._cache.items()}


def run_prompts(
    runner: OnnxRuntimeRunner, spec: GenerationSpec, inputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Run the graph once on whole prompts, with an empty cache.

    Args:
        runner: The session.
        spec: What its graph takes and gives.
        inputs: ``input_ids`` ``[B, S]`` and, where rows are padded, ``attention_mask``.

    Returns:
        The outputs by name, without the cache.

    Raises:
        UsageError: shapes or types are others.
    """
    ids = np.asarray(inputs[INPUT_IDS])
    mask = np.asarray(inputs.get(ATTENTION_MASK, np.ones_like(ids)))
    if ids.ndim != 2 or mask.shape != ids.shape:
        raise UsageError(
            f"{INPUT_IDS} must be [batch, tokens] and {ATTENTION_MASK} of the same shape; found "
            f"{list(ids.shape)} and {list(mask.shape)}"
        )
    return Decoder(runner, spec, len(ids)).step(ids, mask)
