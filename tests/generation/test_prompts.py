"""Prompts are checked, and padded on the left."""

from __future__ import annotations

import numpy as np
import pytest

from moe_export.errors import UsageError
from moe_export.generation.prompts import fill_id, make_prompts
from moe_export.generation.spec import CacheTensor, GenerationSpec

SPEC = GenerationSpec((CacheTensor("past", "present", 2, 4),), vocabulary_size=10, pad_token_id=9)


def test_rows_of_different_lengths_get_padding_on_the_left():
    prompts = make_prompts([[1, 2, 3], [4]], None, SPEC)
    np.testing.assert_array_equal(prompts.ids, [[1, 2, 3], [9, 9, 4]])
    np.testing.assert_array_equal(prompts.mask, [[1, 1, 1], [0, 0, 1]])


@pytest.mark.parametrize("ids", [[1, 2], np.array([1, 2], np.int32), np.array([[1, 2]])])
def test_one_row_is_a_batch_of_one(ids):
    prompts = make_prompts(ids, None, SPEC)
    np.testing.assert_array_equal(prompts.ids, [[1, 2]])
    assert prompts.ids.dtype == prompts.mask.dtype == np.int64


def test_padding_on_the_left_is_kept_and_its_ids_do_not_matter():
    prompts = make_prompts(np.array([[-100, 5], [1, 2]]), np.array([[0, 1], [1, 1]]), SPEC)
    np.testing.assert_array_equal(prompts.ids, [[0, 5], [1, 2]])
    np.testing.assert_array_equal(prompts.mask, [[0, 1], [1, 1]])


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[1, 2, 3]], [[1, 1, 0]], "row 0 has padding behind a token"),
        ([[1, 2, 3], [1, 2, 3]], [[1, 1, 1], [1, 0, 1]], "row 1 has padding behind a token"),
        ([[1, 2]], [[0, 0]], "row 0 keeps no token"),
        ([[1, 2]], [[1]], "expected one number per id"),
        ([[1, 2], [3]], [[1, 1], [1, 1]], "expected one number per id"),
        ([[1, 10]], None, r"row 0 has 10; the vocabulary has ids 0 to 9"),
        ([[1, -1]], None, "row 0 has -1"),
        ([], None, "no row"),
        ([[1], []], None, "a row without a token"),
        ([[1.5]], None, "whole numbers"),
        ([["a"]], None, "whole numbers"),
        (np.zeros((1, 2, 3), np.int64), None, "whole numbers"),
    ],
)
def test_wrong_prompts_are_refused(ids, mask, message):
    with pytest.raises(UsageError, match=message):
        make_prompts(ids, mask, SPEC)


@pytest.mark.parametrize(
    ("pad", "eos", "expected"), [(9, (3,), 9), (None, (3, 4), 3), (None, (), 0), (12, (3,), 3)]
)
def test_rows_are_filled_with_an_id_of_the_vocabulary(pad, eos, expected):
    spec = GenerationSpec(SPEC.caches, 10, pad_token_id=pad)
    assert fill_id(spec, eos) == expected
