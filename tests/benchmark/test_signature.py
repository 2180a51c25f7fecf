"""Numbers of tokens become shapes, or are refused."""

from __future__ import annotations

import numpy as np
import pytest

from moe_export.benchmark.signature import count_tokens, input_shapes
from moe_export.errors import UsageError


def spec(name, *shape, dtype="tensor(float)"):
    return {"name": name, "dtype": dtype, "shape": list(shape)}


IDS = spec("input_ids", "batch", "sequence", dtype="tensor(int64)")
MASK = spec("attention_mask", "batch", "sequence", dtype="tensor(int64)")


def shapes(signature, tokens, **example):
    return input_shapes(signature, tokens, {name: np.zeros(s) for name, s in example.items()})


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ([spec("x", "batch", 64)], {"x": (12, 64)}),
        ([spec("x", "batch", "sequence", 8)], {"x": (1, 12, 8)}),
        ([spec("x", "batch", 4, 8)], {"x": (3, 4, 8)}),
        ([spec("x", 2, "sequence", 8)], {"x": (2, 6, 8)}),
        ([spec("x", 3, 4, 8)], {"x": (3, 4, 8)}),
        ([IDS, MASK], {"input_ids": (1, 12), "attention_mask": (1, 12)}),
        ([spec("pixels", "batch", 3, 8, 8)], {"pixels": (12, 3, 8, 8)}),
    ],
)
def test_sizes_multiply_to_the_tokens(signature, expected):
    example = {s["name"]: [5 if isinstance(n, str) else n for n in s["shape"]] for s in signature}
    found = shapes(signature, 12, **example)
    assert found == expected
    inputs = {name: np.zeros(shape) for name, shape in found.items()}
    assert count_tokens(signature, inputs) == 12


def test_sizes_that_tokens_do_not_decide_are_the_examples():
    signature = [spec("pixels", "batch", 3, "pixels_2", "pixels_3")]
    assert shapes(signature, 4, pixels=(5, 3, 32, 48)) == {"pixels": (4, 3, 32, 48)}


def test_decoder_of_its_own_keeps_the_examples_length():
    decoder = spec("decoder_input_ids", "batch", "decoder_sequence", dtype="tensor(int64)")
    found = shapes([IDS, decoder], 9, input_ids=(5, 11), decoder_input_ids=(5, 7))
    assert found == {"input_ids": (1, 9), "decoder_input_ids": (1, 7)}


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        (spec("x", 3, 4, 8), "has 12 tokens"),
        (spec("x", 6, 64), "has 6 tokens"),
        (spec("x", "batch", 4, 8), "a multiple of 4"),
        (spec("x", 2, "sequence", 8), "a multiple of 2"),
    ],
)
def test_fixed_axes_refuse_other_numbers(signature, said):
    with pytest.raises(UsageError, match=said):
        input_shapes([signature], 5, {"x": np.zeros((1, 1, 1))})


def test_sizes_that_follow_from_others_are_refused():
    signature = [IDS, spec("y", "sequence + 1")]
    with pytest.raises(UsageError, match=r"sequence \+ 1.*--inputs"):
        shapes(signature, 4, input_ids=(1, 5), y=(6,))
