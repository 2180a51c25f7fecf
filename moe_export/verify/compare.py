"""Compare numbers, and routing apart from numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_export.runners.arrays import Array
from moe_export.tolerances import TIE_TOLERANCE


@dataclass(frozen=True)
class RoutingComparison:
    """How two routings of the same tokens differ.

    Attributes:
        disagreeing: ``[T]`` bool, other experts although the scores are apart.
        tied: ``[T]`` bool, other experts within a tie.
        weight_error: Largest difference of a weight over the agreeing tokens.
    """

    disagreeing: Array
    tied: Array
    weight_error: float


def compare_routing(
    ids: Array,
    weights: Array,
    expected_ids: Array,
    expected_weights: Array,
    margin: Array,
    num_experts: int,
) -> RoutingComparison:
    """Compare per token as sets of (id, weight); ids out of range add nothing and are alike.

    Args:
        ids: ``[T, K]`` of the exported model.
        weights: ``[T, K]`` of the exported model.
        expected_ids: ``[T, K]`` of eager.
        expected_weights: ``[T, K]`` of eager.
        margin: ``[T]``, how far eager's last kept selection score is from the first left out.
        num_experts: E.
    """
    ids, weights = _in_range(ids, weights, num_experts)
    expected_ids, expected_weights = _in_range(expected_ids, expected_weights, num_experts)
    order, expected_order = np.argsort(ids, axis=1), np.argsort(expected_ids, axis=1)
    ids, weights = _reorder(ids, order), _reorder(weights, order)
    expected_ids = _reorder(expected_ids, expected_order)
    expected_weights = _reorder(expected_weights, expected_order)
    differs = (ids != expected_ids).any(axis=1)
    tied = differs & (margin <= TIE_TOLERANCE)
    same = ~differs
    error = np.abs(weights[same] - expected_weights[same]).max(initial=0.0)
    return RoutingComparison(differs & ~tied, tied, float(error))


def _reorder(values: Array, order: Array) -> Array:
    result: Array = np.take_along_axis(values, order, axis=1)
    return result


def _in_range(ids: Array, weights: Array, num_experts: int) -> tuple[Array, Array]:
    """Every id out of range becomes E, with the weight 0."""
    valid = (ids >= 0) & (ids < num_experts)
    return np.where(valid, ids, num_experts), np.where(valid, weights, 0).astype(weights.dtype)
