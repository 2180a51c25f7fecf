"""Every backend of the ops against the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe_export.ops import reference, torch_ops
from moe_export.ops.spec import GroupedExperts, TopKGating
from moe_export.tolerances import INNER_TOLERANCE, LAYER_TOLERANCE
from tests.ops.one_function import run_function
from tests.plugins.cuda.run_gpu_op import run_on_gpu_kernels
from tests.plugins.one_node import run_node

NAN, INF = np.float32("nan"), np.float32("inf")


def run_torch(attributes, inputs):
    tensors = [torch.from_numpy(array) for array in inputs.values()]
    if isinstance(attributes, TopKGating):
        logits, *bias = tensors
        return [t.numpy() for t in torch_ops.top_k_gating(logits, attributes, *bias)]
    return [torch_ops.grouped_experts(tensors, attributes).numpy()]


def run_library(attributes, inputs):
    return run_node(attributes.op_type, attributes.to_onnx(), inputs, num_threads=1)


BACKENDS = {
    "torch": run_torch,
    "portable": run_function,
    "library": run_library,
    "gpu": run_on_gpu_kernels,
}


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS)
def backend(request):
    """``run(attributes, inputs by name) -> outputs`` of one implementation."""
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# Gating.

ONE_GROUP = {}
BEST_OF_BLOCKS = {"num_groups": 3, "top_groups": 2}
TOP2_OF_BLOCKS = BEST_OF_BLOCKS | {"group_score": "top2_sum", "excluded_score": "zero"}
GROUPS = {"one_group": ONE_GROUP, "max_neg_inf": BEST_OF_BLOCKS, "top2_zero": TOP2_OF_BLOCKS}
SCORES = ["softmax", "sigmoid", "sqrt_softplus", "identity"]

# Forms that take every path once, for the inputs at the edge.
GATING_FORMS = [
    *(TopKGating(top_k=3, score_function=score) for score in SCORES),
    TopKGating(top_k=3, score_function="identity", weight_function="softmax"),
    TopKGating(top_k=3, score_function="sigmoid", renormalize=True, epsilon=1e-20),
    TopKGating(top_k=3, score_function="sigmoid", **BEST_OF_BLOCKS),
    TopKGating(top_k=3, score_function="sigmoid", has_selection_bias=True, **TOP2_OF_BLOCKS),
]


def gating_inputs(rng, attributes, logits):
    bias = rng.standard_normal(logits.shape[1], np.float32)
    return {"logits": logits} | ({"selection_bias": bias} if attributes.has_selection_bias else {})


def check_gating(backend, attributes, inputs):
    ids, weights = backend(attributes, inputs)
    expected_ids, expected_weights = reference.top_k_gating(
        inputs["logits"], attributes, inputs.get("selection_bias")
    )
    assert (ids.dtype, weights.dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(
        weights, expected_weights, rtol=INNER_TOLERANCE, atol=INNER_TOLERANCE
    )
    return ids, weights


@pytest.mark.parametrize("score_function", SCORES)
@pytest.mark.parametrize("weight_function", ["score", "softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_gating_forms(rng, backend, score_function, weight_function, renormalize, groups, has_bias):
    attributes = TopKGating(
        top_k=3,
        score_function=score_function,
        weight_function=weight_function,
        renormalize=renormalize,
        has_selection_bias=has_bias,
        scale=2.5,
        **GROUPS[groups],
    )
    logits = rng.standard_normal((7, 9), np.float32) * 3
    if score_function == "identity" and renormalize:
        logits = np.abs(logits)  # A sum near zero has no digits to compare.
    check_gating(backend, attributes, gating_inputs(rng, attributes, logits))


@pytest.mark.parametrize("epsilon_mode", ["add", "clamp"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-20, 0.5, 4.0])
def test_gating_epsilon(rng, backend, epsilon_mode, epsilon):
    attributes = TopKGating(
        top_k=3,
        score_function="sigmoid",
        renormalize=True,
        epsilon=epsilon,
        epsilon_mode=epsilon_mode,
    )
    check_gating(backend, attributes, {"logits": rng.standard_normal((7, 9), np.float32)})


@pytest.mark.parametrize("attributes", GATING_FORMS)
@pytest.mark.parametrize("num_tokens", [0, 1, 129])
def test_gating_token_counts(rng, backend, attributes, num_tokens):
    logits = rng.standard_normal((num_tokens, 9), np.float32)
    ids, _ = check_gating(backend, attributes, gating_inputs(rng, attributes, logits))
    assert ids.shape == (num_tokens, 3)


@pytest.mark.parametrize("top_k", [1, 5])
def test_gating_of_one_and_of_all_experts(rng, backend, top_k):
    logits = rng.standard_normal((7, 5), np.float32)
    check_gating(backend, TopKGating(top_k=top_k), {"logits": logits})


@pytest.mark.parametrize("score_function", SCORES)
def test_gating_exact_ties_go_to_the_lower_id(backend, score_function):
    logits = np.float32([[0, 1, 1, 1, 1], [2, 2, 2, 2, 2], [1, 0, 2, 0, 2]])
    attributes = TopKGating(top_k=3, score_function=score_function)
    ids, _ = check_gating(backend, attributes, {"logits": logits})
    assert ids.tolist() == [[1, 2, 3], [0, 1, 2], [2, 4, 0]]


@pytest.mark.parametrize("group_score", ["max", "top2_sum"])
def test_gating_tied_blocks_go_to_the_lower_block(backend, group_score):
    attributes = TopKGating(
        top_k=3, num_groups=3, top_groups=2, group_score=group_score, score_function="identity"
    )
    logits = np.float32([[1, 2, 2, 1, 2, 1], [0, 0, 3, 1, 1, 3], [0] * 6])
    ids, _ = check_gating(backend, attributes, {"logits": logits})
    assert ids.tolist() == [[1, 2, 0], [2, 5, 3], [0, 1, 2]]


def test_gating_experts_of_excluded_blocks_tie_at_zero(backend):
    attributes = TopKGating(
        top_k=3, score_function="identity", num_groups=2, top_groups=1, excluded_score="zero"
    )
    ids, weights = check_gating(
        backend, attributes, {"logits": np.float32([[-2, -3, -1, -9, -8, -7]])}
    )
    assert ids.tolist() == [[3, 4, 5]]
    assert weights.tolist() == [[-9, -8, -7]]


@pytest.mark.parametrize("attributes", GATING_FORMS)
def test_gating_nan_and_infinity(rng, backend, attributes):
    logits = rng.standard_normal((9, 9), np.float32)
    logits[1, 4] = NAN
    logits[2] = NAN
    logits[4, 2:] = -INF
    logits[6, 3] = INF
    logits[7, [0, 8]] = INF, -INF
    check_gating(backend, attributes, gating_inputs(rng, attributes, logits))


@pytest.mark.parametrize("attributes", GATING_FORMS)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_gating_bad_token_leaves_the_others_alone(rng, backend, attributes, bad):
    inputs = gating_inputs(rng, attributes, rng.standard_normal((7, 9), np.float32))
    clean = backend(attributes, inputs)
    inputs["logits"] = inputs["logits"].copy()
    inputs["logits"][3] = bad
    dirty = backend(attributes, inputs)
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(np.delete(a, 3, 0), np.delete(b, 3, 0))


# Experts.

SIZES = {"num_experts": 3, "hidden_size": 5, "intermediate_size": 7}
ACTIVATIONS = ["silu", "gelu", "gelu_tanh", "relu", "relu2", "identity"]
LIMITS = {
    "none": {},
    "on_input": {"limit": 0.5, "limit_on": "input", "up_offset": 1.0},
    "on_output": {"limit": 0.5, "limit_on": "output"},
}
EXPERTS_FORMS = [
    GroupedExperts(**SIZES),
    GroupedExperts(**SIZES, gated=False, activation="relu2", has_bias=True, first_expert=2),
    GroupedExperts(
        **SIZES, has_bias=True, weight_on="input", first_expert=4, alpha=1.702, limit=1.0
    ),
]


def experts_inputs(rng, attributes, ids, ids_dtype=np.int32):
    """Random inputs by name for the ids ``[T, K]`` counted from ``first_expert``."""
    ids = np.asarray(ids)

    def draw(*shape):
        return rng.standard_normal(shape, np.float32)

    return {
        "x": draw(len(ids), attributes.hidden_size),
        "expert_ids": (ids + attributes.first_expert).astype(ids_dtype),
        "expert_weights": draw(*ids.shape),
    } | {name: draw(*shape) for name, shape in attributes.weight_shapes().items()}


def check_experts(backend, attributes, inputs):
    (y,) = backend(attributes, inputs)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = reference.grouped_experts(**inputs, attributes=attributes)
    assert (y.dtype, y.shape) == (np.float32, inputs["x"].shape)
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
    np.testing.assert_allclose(y, expected, rtol=0, atol=LAYER_TOLERANCE * scale)
    return y


def check_experts_form(rng, backend, **values):
    attributes = GroupedExperts(**SIZES, **values)
    ids = rng.integers(-1, 4, (9, 2))
    check_experts(backend, attributes, experts_inputs(rng, attributes, ids))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("weight_on", "first_expert"), [("output", 0), ("input", 3)])
def test_gated_experts_forms(rng, backend, activation, limits, has_bias, weight_on, first_expert):
    check_experts_form(
        rng,
        backend,
        activation=activation,
        alpha=1.702 if activation == "silu" else 1.0,
        has_bias=has_bias,
        weight_on=weight_on,
        first_expert=first_expert,
        **LIMITS[limits],
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("weight_on", "first_expert"), [("output", 0), ("input", 3)])
def test_ungated_experts_forms(rng, backend, activation, has_bias, weight_on, first_expert):
    check_experts_form(
        rng,
        backend,
        gated=False,
        activation=activation,
        has_bias=has_bias,
        weight_on=weight_on,
        first_expert=first_expert,
    )


@pytest.mark.parametrize("attributes", EXPERTS_FORMS)
@pytest.mark.parametrize(
    ("num_tokens", "top_k", "ids_dtype"),
    [(0, 2, np.int32), (0, 2, np.int64), (1, 1, np.int32), (1, 3, np.int64), (67, 2, np.int32)],
)
def test_experts_token_counts(rng, backend, attributes, num_tokens, top_k, ids_dtype):
    ids = rng.integers(0, 3, (num_tokens, top_k))
    check_experts(backend, attributes, experts_inputs(rng, attributes, ids, ids_dtype))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 33, 17), (5, 16, 3)])
def test_experts_sizes(rng, backend, sizes):
    attributes = GroupedExperts(**dict(zip(SIZES, sizes, strict=True)))
    ids = rng.integers(0, sizes[0], (11, 2))
    check_experts(backend, attributes, experts_inputs(rng, attributes, ids))


@pytest.mark.parametrize("attributes", EXPERTS_FORMS)
def test_idle_expert_is_never_read(rng, backend, attributes):
    inputs = experts_inputs(rng, attributes, rng.choice([0, 2], (9, 2)))
    for name in attributes.weight_shapes():
        inputs[name][1] = NAN
    assert np.isfinite(check_experts(backend, attributes, inputs)).all()


@pytest.mark.parametrize("attributes", EXPERTS_FORMS)
@pytest.mark.parametrize("expert", [0, 2])
def test_all_tokens_on_one_expert(rng, backend, attributes, expert):
    inputs = experts_inputs(rng, attributes, np.full((65, 1), expert))
    check_experts(backend, attributes, inputs)


@pytest.mark.parametrize("attributes", EXPERTS_FORMS)
def test_token_that_chose_an_expert_twice_gets_both(rng, backend, attributes):
    inputs = experts_inputs(rng, attributes, np.ones((33, 2), np.int64))
    check_experts(backend, attributes, inputs)


@pytest.mark.parametrize("attributes", EXPERTS_FORMS)
@pytest.mark.parametrize(
    ("outside", "ids_dtype"),
    [
        (-1, np.int32),
        (3, np.int32),
        (-(2**31), np.int32),
        (2**31 - 5, np.int32),
        (-(2**32), np.int64),
        (2**32 + 1, np.int64),
    ],
)
def test_id_out_of_range_adds_nothing(rng, backend, attributes, outside, ids_dtype):
    inputs = experts_inputs(rng, attributes, rng.integers(0, 3, (9, 3)), ids_dtype)
    first = 0 if outside == -(2**31) else attributes.first_expert
    inputs["expert_ids"][:, 1] = outside + first
    inputs["expert_ids"][4] = outside + first
    inputs["expert_weights"][:, 1] = NAN
    y = check_experts(backend, attributes, inputs)
    assert np.isfinite(y).all()
    assert not y[4].any()


@pytest.mark.parametrize("attributes", EXPERTS_FORMS)
def test_experts_nan_and_infinity(rng, backend, attributes):
    inputs = experts_inputs(rng, attributes, rng.integers(-1, 4, (9, 2)))
    inputs["expert_ids"][[1, 3, 5], 0] = attributes.first_expert
    inputs["x"][1, 2] = NAN
    inputs["x"][3, 0] = INF
    inputs["expert_weights"][5, 0] = NAN
    y = check_experts(backend, attributes, inputs)
    assert not np.isfinite(y[[1, 3, 5]]).all(axis=1).any()


@pytest.mark.parametrize("attributes", EXPERTS_FORMS)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_experts_bad_token_leaves_the_others_alone(rng, backend, attributes, bad):
    inputs = experts_inputs(rng, attributes, rng.integers(0, 3, (9, 2)))
    (clean,) = backend(attributes, inputs)
    inputs["x"] = inputs["x"].copy()
    inputs["x"][4] = bad
    (dirty,) = backend(attributes, inputs)
    np.testing.assert_array_equal(np.delete(clean, 4, 0), np.delete(dirty, 4, 0))
