"""Comparing numbers, and routing apart from numbers."""

from __future__ import annotations

import numpy as np
import pytest

from moe_export.tolerances import TIE_TOLERANCE, relative_error
from moe_export.verify.compare import compare_routing

FAR, NEAR = 0.5, TIE_TOLERANCE / 2


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([0.0], [0.0], 0.0),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.nan, 1.0], [0.0, 1.0], np.inf),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([1.0], [1.0, 2.0], np.inf),
    ],
)
def test_relative_error(found, expected, error):
    found, expected = (np.array(v, np.float32) for v in (found, expected))
    assert relative_error(found, expected) == pytest.approx(error)


def test_integers_must_be_equal():
    assert relative_error(np.array([1, 2]), np.array([1, 3])) == np.inf


def routing(ids, weights, expected_ids, expected_weights, margin):
    return compare_routing(
        np.array([ids]),
        np.array([weights], np.float32),
        np.array([expected_ids]),
        np.array([expected_weights], np.float32),
        np.array([margin], np.float32),
        num_experts=8,
    )


def test_order_within_a_token_does_not_matter():
    result = routing([3, 1], [0.3, 0.7], [1, 3], [0.7, 0.3], FAR)
    assert not result.disagreeing.any()
    assert result.weight_error == 0


def test_swapped_weights_are_seen():
    assert routing([3, 1], [0.7, 0.3], [1, 3], [0.7, 0.3], FAR).weight_error > 0.3


def test_another_expert_disagrees_where_scores_are_apart():
    result = routing([0, 2], [0.7, 0.3], [0, 1], [0.7, 0.3], FAR)
    assert result.disagreeing.tolist() == [True]
    assert not result.tied.any()


def test_another_expert_within_a_tie_is_counted_and_left_out():
    result = routing([0, 2], [0.7, 0.9], [0, 1], [0.7, 0.3], NEAR)
    assert result.tied.tolist() == [True]
    assert not result.disagreeing.any()
    assert result.weight_error == 0
