"""``GroupedExperts`` of the ONNX Runtime library against the reference."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from moe_export.ops.reference import grouped_experts
from moe_export.ops.spec import GroupedExperts
from moe_export.tolerances import LAYER_TOLERANCE
from tests.plugins.one_node import make_session, run_node

SMALL = GroupedExperts(num_experts=4, hidden_size=20, intermediate_size=12)
ACTIVATIONS = ["silu", "gelu", "gelu_tanh", "relu", "relu2", "identity"]


def make_inputs(rng, attributes, num_tokens=13, top_k=3, ids_dtype=np.int32):
    """Random inputs by name; about a third of the ids are out of range."""

    def draw(*shape, scale=1.0):
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    first, count = attributes.first_expert, attributes.num_experts
    ids = rng.integers(first - 1, first + count + 1, (num_tokens, top_k)).astype(ids_dtype)
    shapes = attributes.weight_shapes()
    return {
        "x": draw(num_tokens, attributes.hidden_size),
        "expert_ids": ids,
        "expert_weights": draw(num_tokens, top_k),
    } | {
        name: draw(*shape, scale=1.0 if name.endswith("bias") else shape[-1] ** -0.5)
        for name, shape in shapes.items()
    }


def check(attributes, inputs):
    (y,) = run_node("GroupedExperts", attributes.to_onnx(), inputs)
    with np.errstate(invalid="ignore"):
        expected = grouped_experts(**inputs, attributes=attributes)
    finite = expected[np.isfinite(expected)]
    scale = np.abs(finite).max(initial=1.0)
    np.testing.assert_allclose(y, expected, rtol=0, atol=LAYER_TOLERANCE * scale)
    return y


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("weight_on", ["output", "input"])
@pytest.mark.parametrize("ids_dtype", [np.int32, np.int64])
def test_forms(rng, activation, gated, has_bias, weight_on, ids_dtype):
    attributes = GroupedExperts(
        num_experts=5,
        hidden_size=33,
        intermediate_size=21,
        first_expert=3,
        activation=activation,
        alpha=1.702 if activation == "silu" else 1.0,
        gated=gated,
        has_bias=has_bias,
        weight_on=weight_on,
    )
    check(attributes, make_inputs(rng, attributes, ids_dtype=ids_dtype))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("limit_on", ["input", "output"])
@pytest.mark.parametrize("up_offset", [0.0, 1.0])
def test_limits(rng, activation, limit_on, up_offset):
    attributes = GroupedExperts(
        num_experts=4,
        hidden_size=20,
        intermediate_size=12,
        activation=activation,
        limit=0.5,
        limit_on=limit_on,
        up_offset=up_offset,
    )
    check(attributes, make_inputs(rng, attributes))


@pytest.mark.parametrize(("num_tokens", "top_k"), [(0, 2), (1, 9), (200, 1)])
def test_token_counts(rng, num_tokens, top_k):
    check(SMALL, make_inputs(rng, SMALL, num_tokens, top_k))


def test_no_id_in_range_gives_zeros(rng):
    inputs = make_inputs(rng, SMALL, ids_dtype=np.int64)
    inputs["expert_ids"][:] = np.array([-1, 4, 2**32 + 1])
    assert not check(SMALL, inputs).any()


def test_nan_and_infinity_stay_with_their_tokens(rng):
    inputs = make_inputs(rng, SMALL)
    inputs["x"][2, 3] = np.nan
    inputs["x"][5, 0] = np.inf
    inputs["expert_weights"][7] = np.nan
    inputs["up_weight"][1, 0, 0] = np.nan
    check(SMALL, inputs)


@pytest.mark.parametrize("limit_on", ["input", "output"])
def test_nan_passes_limits(rng, limit_on):
    attributes = GroupedExperts(
        num_experts=4, hidden_size=20, intermediate_size=12, limit=1.0, limit_on=limit_on
    )
    inputs = make_inputs(rng, attributes)
    inputs["x"][::2] = np.nan
    check(attributes, inputs)


def test_same_bits_for_any_number_of_threads(rng):
    inputs = make_inputs(rng, SMALL, num_tokens=300)
    (one,), (two,) = (
        run_node("GroupedExperts", SMALL.to_onnx(), inputs, num_threads=n) for n in (1, 2)
    )
    assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_bf16", "amx"])
def test_instruction_sets(rng, monkeypatch, isa):
    monkeypatch.setenv("MOE_EXPORT_ISA", isa)
    check(SMALL, make_inputs(rng, SMALL, num_tokens=40))


def test_unknown_instruction_set_is_refused(rng, monkeypatch):
    monkeypatch.setenv("MOE_EXPORT_ISA", "avx1024")
    with pytest.raises(Exception, match=r"MOE_EXPORT_ISA must be .*; found 'avx1024'"):
        check(SMALL, make_inputs(rng, SMALL))


def test_sessions_share_a_process(rng):
    inputs = make_inputs(rng, SMALL, num_tokens=50)
    sessions = [make_session("GroupedExperts", SMALL.to_onnx(), inputs) for _ in range(3)]
    found = [None] * len(sessions)

    def run(i):
        for _ in range(20):
            (found[i],) = sessions[i].run(None, inputs)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({y.tobytes() for y in found}) == 1


@pytest.mark.parametrize("name", SMALL.to_onnx())
def test_experts_attributes_names_the_missing_one(rng, name):
    attributes = {key: value for key, value in SMALL.to_onnx().items() if key != name}
    with pytest.raises(Exception, match=f"experts_attributes: the node needs attribute {name} "):
        run_node("GroupedExperts", attributes, make_inputs(rng, SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "swish"}, "experts_attributes: activation must be one of silu, .*'swish'"),
        ({"alpha": "1"}, "experts_attributes: the node needs attribute alpha of type float"),
        (
            {"weight_type": "int4", "block_size": 32},
            "experts_c4: this library does not compute weight_type int4 in layout row_major",
        ),
        (
            {"weight_type": "fp8", "weight_layout": "cpu_v1"},
            "experts_c4: this library does not compute weight_type fp8 in layout cpu_v1",
        ),
        ({"weight_layout": "cuda_v1"}, "experts_c4: this library computes weight_layout row_major"),
        ({"weight_type": "int4", "block_size": 48}, "experts_c9: block_size must be 32, 64 or 128"),
        (
            {"weight_type": "int8", "block_size": 32},
            "experts_c9: .* found 32 with int8",
        ),
        ({"has_zero_point": 1}, "experts_c9: has_zero_point belongs to int4"),
        (
            {"weight_type": "mxfp4", "block_size": 32, "weight_layout": "cpu_v1"},
            "experts_c9: mxfp4 needs multiples of 32 columns; found",
        ),
        ({"num_experts": 0}, "experts_c6: num_experts must be at least 1; found 0"),
        ({"first_expert": -1}, "experts_c6: first_expert"),
        ({"limit": -1.0}, "experts_c7: limit"),
        ({"activation": "relu", "alpha": 2.0}, "experts_c7: alpha belongs to silu"),
        ({"gated": 0, "up_offset": 1.0}, "experts_c8: limit and up_offset"),
        ({"block_size": 32}, "experts_c9: block_size"),
        ({"has_bias": 1}, "experts_inputs: the node takes x, .*, down_bias without gaps; found 5"),
    ],
)
def test_attributes_are_checked_when_the_session_is_made(rng, changes, message):
    with pytest.raises(Exception, match=message):
        run_node("GroupedExperts", SMALL.to_onnx() | changes, make_inputs(rng, SMALL))


@pytest.mark.parametrize("count", [4, 7])
def test_experts_inputs_rejects_wrong_count(rng, count):
    inputs = make_inputs(rng, SMALL)
    extra = {f"extra_{i}": inputs["x"] for i in range(2)}
    given = dict(list((inputs | extra).items())[:count])
    with pytest.raises(Exception, match=f"experts_inputs: .* found {count} inputs"):
        run_node("GroupedExperts", SMALL.to_onnx(), given)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (3, 32), r"experts_c1: x must be \[T, H = 20\]; found \[3, 32\]"),
        ("x", (13, 20, 1), r"experts_c1: x must be"),
        ("expert_ids", (12, 3), r"experts_c2: expert_ids must be \[T = 13, K\]; found \[12, 3\]"),
        ("expert_ids", (13, 0), "experts_c2: expert_ids"),
        ("expert_weights", (13, 2), "experts_c3: expert_weights must have expert_ids' shape"),
        ("up_weight", (4, 12, 20), r"experts_c4: up_weight must be \[4, 24, 20\]; found"),
        ("down_weight", (4, 12, 20), r"experts_c4: down_weight must be \[4, 20, 12\]"),
        ("up_bias", (4, 12), r"experts_c5: up_bias must be \[4, 24\]; found \[4, 12\]"),
        ("down_bias", (20,), r"experts_c5: down_bias must be \[4, 20\]; found \[20\]"),
    ],
)
def test_shapes_are_checked_at_every_call(rng, name, shape, message):
    attributes = GroupedExperts(num_experts=4, hidden_size=20, intermediate_size=12, has_bias=True)
    inputs = make_inputs(rng, attributes)
    inputs[name] = np.zeros(shape, inputs[name].dtype)
    with pytest.raises(Exception, match=message):
        run_node("GroupedExperts", attributes.to_onnx(), inputs)


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("x", np.float64, "experts_inputs: x must be float32; found double"),
        ("expert_ids", np.int16, "experts_inputs: expert_ids must be int32 or int64; found int16"),
        ("up_weight", np.float16, "experts_inputs: up_weight must be float32; found float16"),
    ],
)
def test_experts_inputs_rejects_wrong_type(rng, name, dtype, message):
    inputs = make_inputs(rng, SMALL)
    inputs[name] = inputs[name].astype(dtype)
    with pytest.raises(Exception, match=message):
        run_node("GroupedExperts", SMALL.to_onnx(), inputs)
