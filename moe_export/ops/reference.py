"""Executable meaning of the op contract: readable NumPy loops that every backend is compared with.

The numbered steps and constraints are those of ``plugins/README.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.ops.dequantize import dequantize
from moe_export.ops.spec import GroupedExperts, TopKGating, require

Array = NDArray[np.generic]
Float = NDArray[np.float32]


def top_k_gating(
    logits: Array, attributes: TopKGating, selection_bias: Float | None = None
) -> tuple[NDArray[np.int32], Float]:
    """Choose each token's experts and their weights.

    Args:
        logits: Router scores before any function, ``[T, E]``; computed in float32.
        attributes: The node's attributes.
        selection_bias: ``[E]`` float32, added for the choice only.

    Returns:
        ``expert_ids`` ``[T, K]`` int32, best first, ties to the lower id, and ``expert_weights``
        ``[T, K]`` float32.

    Raises:
        ContractError: a shape breaks a constraint (gating_c1 to gating_c6).
    """
    shapes = {"logits": logits.shape}
    if selection_bias is not None:
        shapes["selection_bias"] = selection_bias.shape
    require(
        (selection_bias is not None) == attributes.has_selection_bias,
        "gating_c3",
        "selection_bias must be given exactly when has_selection_bias is set",
    )
    attributes.check_shapes(shapes)
    num_tokens = logits.shape[0]
    ids = np.zeros((num_tokens, attributes.top_k), np.int32)
    weights = np.zeros((num_tokens, attributes.top_k), np.float32)
    for t in range(num_tokens):
        row = logits[t].astype(np.float32)
        scores = score(row, attributes)
        chosen = _choose(scores, attributes, selection_bias)
        ids[t], weights[t] = chosen, _weigh(row[chosen], scores[chosen], attributes)
    return ids, weights


def _softmax(values: Float) -> Float:
    with np.errstate(invalid="ignore"):
        exponentials = np.exp(values - values.max())
        return np.asarray(exponentials / exponentials.sum(), np.float32)


def _sigmoid(values: Float) -> Float:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-values)), np.float32)


def score(logits: Float, attributes: TopKGating) -> Float:
    """Step 1: the scores ``[E]`` of one token's logits."""
    if attributes.score_function == "softmax":
        return _softmax(logits)
    if attributes.score_function == "sigmoid":
        return _sigmoid(logits)
    if attributes.score_function == "sqrt_softplus":
        with np.errstate(invalid="ignore"):
            return np.asarray(np.sqrt(np.logaddexp(np.float32(0), logits)), np.float32)
    return logits


def _choose(score: Float, attributes: TopKGating, bias: Float | None) -> NDArray[np.int64]:
    """Steps 2 to 4."""
    choice = score if bias is None else score + bias
    choice = np.where(np.isnan(choice), np.float32(-np.inf), choice)
    if attributes.num_groups > 1:
        blocks = choice.reshape(attributes.num_groups, -1)
        best = np.sort(blocks, axis=1)[:, ::-1]
        block_score = best[:, 0] if attributes.group_score == "max" else best[:, 0] + best[:, 1]
        kept = np.argsort(-block_score, kind="stable")[: attributes.top_groups]
        excluded = np.float32(-np.inf if attributes.excluded_score == "neg_inf" else 0.0)
        masked = np.full_like(blocks, excluded)
        masked[kept] = blocks[kept]
        choice = masked.reshape(-1)
    return np.argsort(-choice, kind="stable")[: attributes.top_k]


def _weigh(logits: Float, score: Float, attributes: TopKGating) -> Float:
    """Steps 5 and 6, for the selected experts."""
    if attributes.weight_function == "score":
        weight = score
    else:
        weight = (_softmax if attributes.weight_function == "softmax" else _sigmoid)(logits)
    if attributes.renormalize:
        total, epsilon = weight.sum(dtype=np.float32), np.float32(attributes.epsilon)
        with np.errstate(divide="ignore", invalid="ignore"):
            weight = weight / (
                total + epsilon if attributes.epsilon_mode == "add" else max(total, epsilon)
            )
    return np.asarray(weight * np.float32(attributes.scale), np.float32)


def activate(values: Float, attributes: GroupedExperts) -> Float:
    """The contract's activations on ``values`` of any shape, float32 or float64."""
    kind = attributes.activation
    with np.errstate(over="ignore"):
        if kind == "silu":
            result = values / (1 + np.exp(-attributes.alpha * values))
        elif kind == "gelu":
            result = (
                values
                * 0.5
                * (1 + np.vectorize(math.erf, otypes=[np.float64])(values / math.sqrt(2)))
            )
        elif kind == "gelu_tanh":
            result = (
                values
                * 0.5
                * (1 + np.tanh(math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)))
            )
        elif kind == "relu":
            result = np.maximum(values, 0)
        elif kind == "relu2":
            result = np.maximum(values, 0) ** 2
        else:
            result = values
    return np.asarray(result, values.dtype)


def inner(projected: Float, attributes: GroupedExperts) -> Float:
    """From the up projection's output ``[..., 2·I]`` (``[..., I]`` ungated) to h ``[..., I]``."""
    if not attributes.gated:
        return activate(projected, attributes)
    gate, up = np.split(projected, 2, axis=-1)
    limit = attributes.limit if attributes.limit > 0 else np.inf
    up = np.clip(up, -limit, limit)
    if attributes.limit_on == "input":
        activated = activate(np.minimum(gate, limit), attributes)
    else:
        activated = np.minimum(activate(gate, attributes), limit)
    return np.asarray(activated * (up + attributes.up_offset), projected.dtype)


def grouped_experts(
    x: NDArray[Any],
    expert_ids: NDArray[np.integer],
    expert_weights: Float,
    up_weight: Array,
    down_weight: Array,
    attributes: GroupedExperts,
    up_bias: Float | None = None,
    down_bias: Float | None = None,
    **quantization: Array,
) -> NDArray[Any]:
    """Apply to each token its experts and add them up by weight, in float64 inside.

    Args:
        x: ``[T, H]``.
        expert_ids: ``[T, K]``; an id outside the node's range adds nothing.
        expert_weights: ``[T, K]``.
        up_weight: ``[E, 2·I, H]``, gate rows first (``[E, I, H]`` ungated), stored as
            ``weight_type`` says.
        down_weight: ``[E, H, I]``, likewise.
        attributes: The node's attributes; weights are row-major.
        up_bias: ``[E, 2·I]`` (``[E, I]`` ungated), with ``has_bias``.
        down_bias: ``[E, H]``, with ``has_bias``.
        **quantization: ``up_scale``, ``down_scale``, ``up_zero`` and ``down_zero``, as needed.

    Returns:
        ``[T, H]`` in x's type.

    Raises:
        ContractError: a shape or the storage of the weights breaks a constraint.
    """
    stored = {"up_weight": up_weight, "down_weight": down_weight} | quantization
    stored |= {
        name: b for name, b in (("up_bias", up_bias), ("down_bias", down_bias)) if b is not None
    }
    names = attributes.input_names()
    require(
        set(stored) == set(names[3:]),
        "experts_inputs",
        f"expected {', '.join(names)}; found {', '.join(names[:3])}, {', '.join(stored)}",
    )
    given = {"x": x, "expert_ids": expert_ids, "expert_weights": expert_weights} | stored
    attributes.check_shapes({name: given[name].shape for name in names})
    y = np.zeros(x.shape, np.float64)
    for t, k in np.ndindex(expert_ids.shape):
        e = int(expert_ids[t, k]) - attributes.first_expert
        if not 0 <= e < attributes.num_experts:
            continue
        weight = np.float64(expert_weights[t, k])
        token: NDArray[Any] = x[t].astype(np.float64)
        if attributes.weight_on == "input":
            token, weight = token * weight, np.float64(1)
        projected = _matrix(stored, "up", e, attributes) @ token
        if up_bias is not None:
            projected = projected + up_bias[e]
        out = _matrix(stored, "down", e, attributes) @ inner(projected, attributes)
        if down_bias is not None:
            out = out + down_bias[e]
        y[t] += weight * out
    return y.astype(x.dtype)


def _matrix(
    stored: Mapping[str, Array], side: str, expert: int, attributes: GroupedExperts
) -> NDArray[Any]:
    """An expert's ``up`` or ``down`` matrix, in float64."""
    storage = attributes.storage
    columns = attributes.hidden_size if side == "up" else attributes.intermediate_size
    parts = {part: stored[f"{side}_{part}"][expert] for part in storage.parts}
    return dequantize(storage, parts, columns).astype(np.float64)
