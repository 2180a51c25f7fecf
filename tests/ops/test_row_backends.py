"""Every backend of ExpertDispatch, GroupedMatMul and ExpertCombine against the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe_export.ops import reference, reference_rows, torch_ops
from moe_export.ops.spec import ExpertCombine, ExpertDispatch, GroupedExperts, GroupedMatMul
from moe_export.tolerances import LAYER_TOLERANCE
from tests.ops.one_function import run_function
from tests.plugins.cuda.run_gpu_op import run_on_gpu_kernels
from tests.plugins.one_node import run_node

NAN, INF = np.float32("nan"), np.float32("inf")
FORMS = [
    ExpertDispatch(num_experts=3, hidden_size=5),
    ExpertDispatch(num_experts=4, hidden_size=1, first_expert=2),
]


def run_torch(attributes, inputs):
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if isinstance(attributes, ExpertDispatch):
        return [t.numpy() for t in torch_ops.expert_dispatch(**tensors, attributes=attributes)]
    multiplies = isinstance(attributes, GroupedMatMul)
    op = torch_ops.grouped_matmul if multiplies else torch_ops.expert_combine
    return [op(**tensors, attributes=attributes).numpy()]


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


def draw(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def check(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=LAYER_TOLERANCE * scale)


# Dispatch.


def dispatch_inputs(rng, attributes, local_ids, dtype=np.int32):
    """Random tokens with ids ``[T, K]`` counted from ``first_expert``."""
    ids = np.asarray(local_ids, np.int64) + attributes.first_expert
    return {"x": draw(rng, len(ids), attributes.hidden_size), "expert_ids": ids.astype(dtype)}


def check_dispatch(backend, attributes, inputs):
    found = backend(attributes, inputs)
    expected = reference_rows.expert_dispatch(**inputs, attributes=attributes)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    return found


@pytest.mark.parametrize("attributes", FORMS)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("shape", [(0, 2), (1, 1), (1, 3), (9, 2), (67, 4)])
def test_dispatch_token_counts(rng, backend, attributes, dtype, shape):
    ids = rng.integers(-1, attributes.num_experts + 1, shape)
    check_dispatch(backend, attributes, dispatch_inputs(rng, attributes, ids, dtype))


def test_dispatch_sorts_by_expert_and_then_by_slot(rng, backend):
    inputs = dispatch_inputs(rng, FORMS[0], [[2, 0], [7, 2], [0, -1]])
    rows, row_map, group_ends, row_experts = check_dispatch(backend, FORMS[0], inputs)
    assert row_map.tolist() == [[2, 0], [-1, 3], [1, -1]]
    assert group_ends.tolist() == [2, 2, 4]
    assert row_experts.tolist() == [0, 0, 2, 2, 2, 2]
    np.testing.assert_array_equal(rows[:4], inputs["x"][[0, 2, 0, 1]])
    assert not rows[4:].any()


@pytest.mark.parametrize("attributes", FORMS)
@pytest.mark.parametrize("pattern", [[0, 0], [1, 2], [-1, -1], [3, 4]])
def test_dispatch_of_all_tokens_to_few_experts(rng, backend, attributes, pattern):
    inputs = dispatch_inputs(rng, attributes, [pattern] * 33)
    check_dispatch(backend, attributes, inputs)


@pytest.mark.parametrize("outside", [-(2**63), -(2**32), 2**32, 2**32 + 1, 2**63 - 1])
def test_dispatch_c2_ids_beyond_int32_get_no_row(rng, backend, outside):
    inputs = dispatch_inputs(rng, FORMS[1], np.zeros((3, 2)), np.int64)
    inputs["expert_ids"][1] = outside
    _, row_map, group_ends, _ = check_dispatch(backend, FORMS[1], inputs)
    assert row_map[1].tolist() == [-1, -1]
    assert group_ends.tolist() == [4] * 4


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_dispatch_copies_any_value_and_only_to_its_rows(rng, backend, bad):
    inputs = dispatch_inputs(rng, FORMS[0], [[1, 0], [-1, 3], [2, 1]])
    inputs["x"][0, 1], inputs["x"][1] = bad, bad  # token 1 has no expert
    rows, *_ = check_dispatch(backend, FORMS[0], inputs)
    assert np.isfinite(rows).all(axis=1).tolist() == [False, False, True, True, True, True]


# Products.


def matmul_inputs(rng, attributes, group_ends, num_rows):
    weights = {name: draw(rng, *shape) for name, shape in attributes.weight_shapes().items()}
    rows = draw(rng, num_rows, attributes.in_features)
    given = {"rows": rows, "weight": weights["weight"], "group_ends": np.int32(group_ends)}
    return given | {name: array for name, array in weights.items() if name == "bias"}


def check_matmul(backend, attributes, inputs):
    (y,) = backend(attributes, inputs)
    with np.errstate(invalid="ignore"):
        expected = reference_rows.grouped_matmul(**inputs, attributes=attributes)
    check(y, expected)
    assert not y[inputs["group_ends"][-1] :].any()
    return y


def matmul_form(has_bias=False, sizes=(3, 5, 7)):
    num_experts, in_features, out_features = sizes
    return GroupedMatMul(
        num_experts=num_experts,
        in_features=in_features,
        out_features=out_features,
        has_bias=has_bias,
    )


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    ("group_ends", "num_rows"),
    [
        ([0, 0, 0], 0),
        ([0, 0, 0], 4),
        ([1, 1, 1], 1),
        ([0, 0, 6], 6),
        ([3, 3, 9], 12),
        ([2, 40, 41], 67),
    ],
)
def test_matmul_groups(rng, backend, has_bias, group_ends, num_rows):
    attributes = matmul_form(has_bias)
    check_matmul(backend, attributes, matmul_inputs(rng, attributes, group_ends, num_rows))


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 33, 17), (2, 16, 50), (2, 130, 1), (2, 1, 64)])
def test_matmul_sizes(rng, backend, has_bias, sizes):
    attributes = matmul_form(has_bias, sizes)
    inputs = matmul_inputs(rng, attributes, np.linspace(5, 11, sizes[0]).astype(int), 13)
    check_matmul(backend, attributes, inputs)


@pytest.mark.parametrize("has_bias", [False, True])
def test_matmul_reads_neither_idle_experts_nor_unused_rows(rng, backend, has_bias):
    attributes = matmul_form(has_bias)
    inputs = matmul_inputs(rng, attributes, [4, 4, 6], 9)
    for name in attributes.weight_shapes():
        inputs[name][1] = NAN
    inputs["rows"][6:] = NAN
    assert np.isfinite(check_matmul(backend, attributes, inputs)).all()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_matmul_bad_row_leaves_the_others_alone(rng, backend, bad):
    inputs = matmul_inputs(rng, matmul_form(True), [6, 6, 9], 9)
    (clean,) = backend(matmul_form(True), inputs)
    inputs["rows"][4] = bad
    (dirty,) = backend(matmul_form(True), inputs)
    np.testing.assert_array_equal(np.delete(clean, 4, 0), np.delete(dirty, 4, 0))
    assert not np.isfinite(dirty[4]).any()


# Sums.

COMBINE = ExpertCombine(hidden_size=5)


def combine_inputs(rng, row_map, num_rows, hidden_size=5):
    row_map = np.asarray(row_map, np.int32)
    rows = draw(rng, num_rows, hidden_size)
    return {"rows": rows, "row_map": row_map, "expert_weights": draw(rng, *row_map.shape)}


def check_combine(backend, attributes, inputs):
    (y,) = backend(attributes, inputs)
    with np.errstate(invalid="ignore"):
        check(y, reference_rows.expert_combine(**inputs, attributes=attributes))
    return y


@pytest.mark.parametrize("shape", [(0, 2), (1, 1), (1, 4), (9, 2), (67, 3)])
@pytest.mark.parametrize("num_rows", [0, 1, 30])
@pytest.mark.parametrize("hidden_size", [1, 5, 40])
def test_combine_shapes(rng, backend, shape, num_rows, hidden_size):
    inputs = combine_inputs(rng, rng.integers(-1, num_rows, shape), num_rows, hidden_size)
    check_combine(backend, ExpertCombine(hidden_size=hidden_size), inputs)


def test_combine_skips_rows_that_are_not_there(rng, backend):
    inputs = combine_inputs(rng, [[2, -1], [-1, -1], [-1, 0], [1, 1]], 3)
    inputs["expert_weights"][inputs["row_map"] < 0] = NAN
    y = check_combine(backend, COMBINE, inputs)
    assert np.isfinite(y).all()
    assert not y[1].any()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_combine_keeps_nan_and_infinity_with_their_tokens(rng, backend, bad):
    inputs = combine_inputs(rng, [[0, 1], [2, 3], [4, -1], [3, 0]], 6)
    inputs["rows"][2, 1] = inputs["expert_weights"][2, 0] = inputs["rows"][5] = bad
    y = check_combine(backend, COMBINE, inputs)
    assert np.isfinite(y).all(axis=1).tolist() == [True, False, False, True]


def test_combine_adds_in_order_of_k(backend):
    """In any other order the small row would survive, or be lost, otherwise."""
    inputs = {
        "rows": np.float32([[1e8] * 5, [1.0] * 5, [-1e8] * 5]),
        "row_map": np.int32([[0, 1, 2], [0, 2, 1]]),
        "expert_weights": np.ones((2, 3), np.float32),
    }
    (y,) = backend(COMBINE, inputs)
    assert y.tolist() == [[0.0] * 5, [1.0] * 5]


@pytest.mark.parametrize("wrong", [-2, 6, 2**31 - 1, -(2**31)])
def test_combine_c4_refuses_rows_that_do_not_exist(rng, backend, wrong):
    if backend is run_on_gpu_kernels:
        pytest.skip("a GPU cannot refuse what a tensor holds: such rows add nothing there")
    inputs = combine_inputs(rng, [[0, 1], [2, wrong]], 6)
    with pytest.raises(Exception, match=r"combine_c4: row_map|indices element out of data bounds"):
        backend(COMBINE, inputs)


# All three.


@pytest.mark.parametrize("num_tokens", [0, 1, 23])
@pytest.mark.parametrize("first_expert", [0, 3])
@pytest.mark.parametrize("has_bias", [False, True])
def test_three_ops_make_the_standard_ffn(rng, backend, num_tokens, first_expert, has_bias):
    sizes = {"num_experts": 4, "hidden_size": 6, "intermediate_size": 9}
    experts = GroupedExperts(
        **sizes, activation="relu", gated=False, has_bias=has_bias, first_expert=first_expert
    )
    weights = {name: draw(rng, *shape) for name, shape in experts.weight_shapes().items()}
    x, ids = draw(rng, num_tokens, 6), rng.integers(0, 9, (num_tokens, 3)).astype(np.int32)
    expert_weights = draw(rng, num_tokens, 3)

    dispatch = ExpertDispatch(num_experts=4, hidden_size=6, first_expert=first_expert)
    rows, row_map, ends, _ = backend(dispatch, {"x": x, "expert_ids": ids})

    def multiply(rows, name, in_features, out_features):
        given = {"rows": rows, "weight": weights[f"{name}_weight"], "group_ends": ends}
        given |= {"bias": weights[f"{name}_bias"]} if has_bias else {}
        return backend(matmul_form(has_bias, (4, in_features, out_features)), given)[0]

    rows = multiply(np.maximum(multiply(rows, "up", 6, 9), 0), "down", 9, 6)
    inputs = {"rows": rows, "row_map": row_map, "expert_weights": expert_weights}
    (y,) = backend(ExpertCombine(hidden_size=6), inputs)
    expected = reference.grouped_experts(x, ids, expert_weights, **weights, attributes=experts)
    check(y, expected)
