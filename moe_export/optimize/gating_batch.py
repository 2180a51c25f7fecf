"""``TopKGating`` on many rows at once: what hypotheses about a router are evaluated with.

The meaning is that of ``ops/reference.py``, which loops over rows; a fit is confirmed with that.
"""

from __future__ import annotations

import numpy as np

from moe_export.ops.spec import ScoreFunction, TopKGating
from moe_export.runners.arrays import Array
from moe_export.tolerances import ROUTER_TIE_TOLERANCE


def scores(function: ScoreFunction, logits: Array) -> Array:
    """Score of every expert, ``[T, E]`` float32."""
    with np.errstate(all="ignore"):
        if function == "softmax":
            return _softmax(logits)
        if function == "sigmoid":
            return _sigmoid(logits)
        if function == "sqrt_softplus":
            return np.asarray(np.sqrt(np.logaddexp(np.float32(0), logits)), np.float32)
    return logits


def choose(
    score: Array, attributes: TopKGating, bias: Array | None, favored: Array | None = None
) -> Array:
    """Ids ``[T, K]`` of the chosen experts, best first.

    Args:
        score: ``[T, E]``.
        attributes: The hypothesis.
        bias: ``[E]``, with ``has_selection_bias``.
        favored: Ids ``[T, K]`` that win where the score leaves a choice within rounding.
    """
    choice = score if bias is None else score + bias
    choice = np.where(np.isnan(choice), np.float32(-np.inf), choice)
    if favored is not None:
        choice = _favor(choice, favored)
    if attributes.num_groups > 1:
        choice = _keep_groups(choice, attributes)
    order: Array = np.argsort(-choice, axis=1, kind="stable")[:, : attributes.top_k]
    return order


def _favor(choice: Array, ids: Array) -> Array:
    raised = choice.astype(np.float64)
    kept = np.take_along_axis(raised, ids, 1)
    with np.errstate(invalid="ignore"):
        lifted = kept + ROUTER_TIE_TOLERANCE * np.abs(kept) + 1e-300
    lifted = np.where(np.isfinite(kept), lifted, kept)
    np.put_along_axis(raised, ids, lifted, 1)
    return raised


def _keep_groups(choice: Array, attributes: TopKGating) -> Array:
    tokens, experts = choice.shape
    blocks = choice.reshape(tokens, attributes.num_groups, -1)
    if attributes.group_score == "max":
        block_score = blocks.max(axis=2)
    else:
        best = np.partition(blocks, blocks.shape[2] - 2, axis=2)
        block_score = best[:, :, -1] + best[:, :, -2]
    kept = np.argsort(-block_score, axis=1, kind="stable")[:, : attributes.top_groups]
    keep = np.zeros(block_score.shape, bool)
    np.put_along_axis(keep, kept, True, 1)
    excluded = -np.inf if attributes.excluded_score == "neg_inf" else 0.0
    masked: Array = np.where(keep[:, :, None], blocks, choice.dtype.type(excluded))
    return masked.reshape(tokens, experts)


def weigh(logits: Array, score: Array, ids: Array, attributes: TopKGating) -> Array:
    """Weights ``[T, K]`` of the experts ``ids``, float32."""
    with np.errstate(all="ignore"):
        if attributes.weight_function == "score":
            weight = np.take_along_axis(score, ids, 1)
        else:
            chosen = np.take_along_axis(logits, ids, 1)
            weight = (
                _softmax(chosen) if attributes.weight_function == "softmax" else _sigmoid(chosen)
            )
        if attributes.renormalize:
            total, epsilon = weight.sum(axis=1, keepdims=True), np.float32(attributes.epsilon)
            add = attributes.epsilon_mode == "add"
            weight = weight / (total + epsilon if add else np.maximum(total, epsilon))
        return np.asarray(weight * np.float32(attributes.scale), np.float32)


def _softmax(values: Array) -> Array:
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


def _sigmoid(values: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-values)), np.float32)
