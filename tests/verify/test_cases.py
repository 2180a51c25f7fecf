"""The inputs of the sweep."""

from __future__ import annotations

import numpy as np

from moe_export.plan import AxisSpec
from moe_export.verify.cases import InputShape, Sweep

IDS = InputShape("input_ids", ("batch", "sequence"), np.zeros((2, 4), np.int64), 50)
MASK = InputShape("attention_mask", ("batch", "sequence"), np.ones((2, 4), np.int64))
X = InputShape("x", ("batch", 8), np.full((3, 8), 5.0, np.float32))


def shapes(*inputs, ranges=()):
    return [case.sizes for case in Sweep(inputs, ranges, seed=0).shapes()]


def test_one_token_odd_and_many():
    assert [s["batch"] for s in shapes(X)] == [1, 7, 33, 256]
    assert {tuple(s.values()) for s in shapes(IDS)} >= {(1, 1), (1, 7), (3, 5), (2, 83)}


def test_a_decoder_is_never_as_long_as_its_encoder():
    decoder = InputShape("decoder_input_ids", ("batch", "decoder_sequence"), IDS.example, 50)
    assert all(s["decoder_sequence"] != s["sequence"] for s in shapes(IDS, decoder))


def test_sizes_stay_in_the_range_asked_for():
    assert [s["batch"] for s in shapes(X, ranges=(AxisSpec("x", 0, 2, 32),))] == [2, 7, 32, 32]


def test_masks_are_padded_on_both_sides_and_keep_a_token():
    sweep = Sweep((IDS, MASK), (), seed=0)
    padded = [sweep.draw(case) for case in sweep.shapes() if case.padded]
    assert len(padded) == 2
    for case in padded:
        assert case.attended.any(axis=1).all()
        assert not case.attended.all()
        assert (case.inputs["attention_mask"] == case.attended).all()


def test_static_model_keeps_the_example_shape():
    fixed = InputShape("x", (3, 8), np.zeros((3, 8), np.float32))
    assert shapes(fixed) == [{}]


def test_ids_stay_in_their_range_and_unknown_ones_in_the_example():
    sweep = Sweep((IDS,), (), seed=0)
    drawn = [sweep.draw(case).inputs["input_ids"] for case in sweep.shapes()]
    assert max(a.max() for a in drawn) < 50
    assert max(a.max() for a in drawn) > 40
    unknown = InputShape("kind", ("batch",), np.array([3, 9]))
    sweep = Sweep((unknown,), (), seed=0)
    values = {v for case in sweep.shapes() for v in sweep.draw(case).inputs["kind"].tolist()}
    assert values == {3, 9}


def test_draws_are_seeded():
    def draw(seed):
        sweep = Sweep((X,), (), seed)
        return sweep.draw(next(iter(sweep.shapes()))).inputs["x"]

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
