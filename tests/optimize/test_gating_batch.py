"""What fits are made with is what the contract's reference says."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest

from moe_export.ops.reference import top_k_gating
from moe_export.ops.spec import (
    EpsilonMode,
    ExcludedScore,
    GroupScore,
    ScoreFunction,
    TopKGating,
    WeightFunction,
)
from moe_export.optimize.gating_batch import choose, scores, weigh
from moe_export.optimize.probes import draw_probes

GROUPS = [(1, 1), (4, 2), (2, 1)]


@pytest.mark.parametrize("score", get_args(ScoreFunction))
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("biased", [False, True])
def test_choice_and_weights_equal_the_reference(score, groups, biased):
    logits = draw_probes(8, seed=9).logits
    bias = np.linspace(-0.5, 0.5, 8, dtype=np.float32) if biased else None
    kinds = itertools.product(
        get_args(GroupScore),
        get_args(ExcludedScore),
        get_args(WeightFunction),
        get_args(EpsilonMode),
    )
    for group_score, excluded, weight, mode in kinds:
        attributes = TopKGating(
            top_k=3,
            score_function=score,
            has_selection_bias=biased,
            num_groups=groups[0],
            top_groups=groups[1],
            group_score=group_score,
            excluded_score=excluded,
            weight_function=weight,
            renormalize=mode == "clamp",
            epsilon=0.25,
            epsilon_mode=mode,
            scale=1.5,
        )
        expected_ids, expected = top_k_gating(logits, attributes, bias)
        score_values = scores(score, logits)
        ids = choose(score_values, attributes, bias)
        assert np.array_equal(ids, expected_ids)
        found = weigh(logits, score_values, ids, attributes)
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-38)


def test_favored_expert_wins_a_tie_and_nothing_else():
    attributes = TopKGating(top_k=1, score_function="identity")
    score = np.array([[1.0, 1.0, 0.5], [1.0, 1.0 + 1e-7, 0.5], [1.0, 1.1, 0.5]], np.float32)
    favored = np.array([[1], [0], [0]])
    assert choose(score, attributes, None, favored).tolist() == [[1], [0], [1]]
