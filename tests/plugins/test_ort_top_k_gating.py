"""``TopKGating`` of the ONNX Runtime library against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from moe_export.ops.reference import top_k_gating
from moe_export.ops.spec import TopKGating
from moe_export.tolerances import INNER_TOLERANCE
from tests.plugins.one_node import run_node

ATTRIBUTES = TopKGating(top_k=2).to_onnx()


def check(attributes, logits, bias=None):
    inputs = {"logits": logits} | ({} if bias is None else {"selection_bias": bias})
    ids, weights = run_node("TopKGating", attributes.to_onnx(), inputs)
    expected_ids, expected_weights = top_k_gating(logits, attributes, bias)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(
        weights, expected_weights, rtol=INNER_TOLERANCE, atol=INNER_TOLERANCE
    )


def logits_of(rng, num_tokens=33, num_experts=24):
    return rng.standard_normal((num_tokens, num_experts), np.float32) * 3


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid", "sqrt_softplus", "identity"])
@pytest.mark.parametrize("weight_function", ["score", "softmax", "sigmoid"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_scores_and_weights(rng, score_function, weight_function, has_bias):
    attributes = TopKGating(
        top_k=5,
        score_function=score_function,
        weight_function=weight_function,
        has_selection_bias=has_bias,
        scale=2.5,
    )
    bias = rng.standard_normal(24, np.float32) if has_bias else None
    check(attributes, logits_of(rng), bias)


@pytest.mark.parametrize("group_score", ["max", "top2_sum"])
@pytest.mark.parametrize("excluded_score", ["neg_inf", "zero"])
@pytest.mark.parametrize("top_groups", [1, 2, 4])
def test_gating_c5_groups(rng, group_score, excluded_score, top_groups):
    attributes = TopKGating(
        top_k=4,
        num_groups=4,
        top_groups=top_groups,
        group_score=group_score,
        excluded_score=excluded_score,
        has_selection_bias=True,
    )
    check(attributes, logits_of(rng), rng.standard_normal(24, np.float32) - 1)


@pytest.mark.parametrize("epsilon_mode", ["add", "clamp"])
@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_gating_c7_renormalization(rng, epsilon_mode, epsilon):
    attributes = TopKGating(
        top_k=3,
        score_function="sigmoid",
        renormalize=True,
        epsilon=epsilon,
        epsilon_mode=epsilon_mode,
    )
    check(attributes, logits_of(rng))


def test_zero_tokens():
    check(TopKGating(top_k=2), np.zeros((0, 4), np.float32))


def test_exact_ties_go_to_the_lower_id():
    check(TopKGating(top_k=3), np.float32([[0, 1, 1, 1, 1], [2, 2, 2, 2, 2]]))


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid", "sqrt_softplus", "identity"])
def test_nan_and_infinity(score_function):
    nan, inf = np.float32("nan"), np.float32("inf")
    logits = np.float32([[nan, 1, 2, -inf], [nan] * 4, [1, -inf, -inf, nan], [0, -1, 1, 3]])
    logits = np.vstack([logits, np.float32([[inf, 1, 0, -1]])])
    check(TopKGating(top_k=3, score_function=score_function), logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 0}, "gating_c2: top_k must be at least 1; found 0"),
        ({"num_groups": 0}, "gating_c4: num_groups"),
        ({"top_groups": 2}, "gating_c5: top_groups must lie in"),
        ({"epsilon": -1.0}, "gating_c7: epsilon"),
        ({"scale": float("inf")}, "gating_attributes: scale must be a finite float"),
        (
            {"score_function": "softmaxx"},
            "gating_attributes: score_function must be one of softmax, ",
        ),
        ({"renormalize": 2}, "gating_attributes: renormalize must be 0 or 1; found 2"),
        ({"epsilon": 1}, "gating_attributes: the node needs attribute epsilon of type float"),
        ({"has_selection_bias": 1}, "gating_inputs: the node takes logits, selection_bias"),
    ],
)
def test_attributes_are_checked_when_the_session_is_made(changes, message):
    with pytest.raises(Exception, match=message):
        run_node("TopKGating", ATTRIBUTES | changes, {"logits": np.zeros((1, 4), np.float32)})


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_gating_attributes_names_the_missing_one(name):
    attributes = {key: value for key, value in ATTRIBUTES.items() if key != name}
    with pytest.raises(Exception, match=f"gating_attributes: the node needs attribute {name} "):
        run_node("TopKGating", attributes, {"logits": np.zeros((1, 4), np.float32)})


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({}, (4,), r"gating_c1: logits must be \[T, E\]; found \[4\]"),
        ({"top_k": 5}, (1, 4), "gating_c2: top_k = 5 exceeds the 4 experts"),
        ({"num_groups": 3}, (1, 4), "gating_c4: 4 experts do not divide into num_groups = 3"),
        ({"num_groups": 4}, (1, 4), "gating_c5: top_groups = 1 of 1 experts hold fewer"),
        (
            {"num_groups": 4, "top_groups": 2, "group_score": "top2_sum"},
            (1, 4),
            "gating_c6: group_score = top2_sum needs 2 experts per group; found 1",
        ),
    ],
)
def test_shapes_are_checked_at_every_call(changes, shape, message):
    with pytest.raises(Exception, match=message):
        run_node("TopKGating", ATTRIBUTES | changes, {"logits": np.zeros(shape, np.float32)})


def test_gating_c3_rejects_wrong_bias_size():
    inputs = {"logits": np.zeros((1, 4), np.float32), "selection_bias": np.zeros(3, np.float32)}
    with pytest.raises(
        Exception, match=r"gating_c3: selection_bias must be \[E = 4\]; found \[3\]"
    ):
        run_node("TopKGating", ATTRIBUTES | {"has_selection_bias": 1}, inputs)


def test_gating_inputs_rejects_wrong_type():
    with pytest.raises(Exception, match="gating_inputs: logits must be float32; found double"):
        run_node("TopKGating", ATTRIBUTES, {"logits": np.zeros((1, 4), np.float64)})
