"""Shapes that an engine takes, from what varies, what was asked for and the example."""

from __future__ import annotations

import pytest

from moe_export.engine.profile import (
    GraphInput,
    describe_ranges,
    find_ranges,
    make_profile,
    spell_totals,
)
from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.plan import AxisSpec

IDS = GraphInput("input_ids", ("batch", "sequence"), (5, 45))
MASK = GraphInput("attention_mask", ("batch", "sequence"), (5, 45))
ROWS = GraphInput("x", ("batch", 64), (5, 64))


def profile(inputs, *dynamic, example_given=False):
    return make_profile(inputs, find_ranges(inputs, dynamic, example_given=example_given))


def test_axes_without_a_range_get_one_and_are_best_in_its_middle():
    found = profile([IDS, MASK])
    assert found["input_ids"] == found["attention_mask"] == ((1, 1), (3, 45), (8, 2048))


def test_an_axis_alone_counts_tokens():
    assert profile([ROWS]) == {"x": ((1, 64), (45, 64), (2048, 64))}


def test_the_users_example_is_what_is_best():
    assert profile([IDS], example_given=True)["input_ids"][1] == (5, 45)
    large = GraphInput("x", ("batch", 64), (5000, 64))
    assert profile([large], example_given=True)["x"] == ((1, 64), (5000, 64), (5000, 64))


def test_a_range_holds_for_every_axis_of_the_symbol():
    found = profile([IDS, MASK], AxisSpec("attention_mask", 1, 16, 256))
    assert found["input_ids"] == ((1, 16), (3, 64), (8, 256))
    given = profile([IDS], AxisSpec("input_ids", 1, 1, 30), example_given=True)
    assert given["input_ids"][1] == (5, 30)


def test_ranges_of_one_symbol_must_overlap():
    first, second = AxisSpec("input_ids", 1, 1, 8), AxisSpec("attention_mask", 1, 4, 64)
    assert profile([IDS, MASK], first, second)["input_ids"] == ((1, 4), (3, 6), (8, 8))
    with pytest.raises(UsageError, match=r"attention_mask\.1: sequence is given two ranges"):
        profile([IDS, MASK], first, AxisSpec("attention_mask", 1, 9, 64))


def test_a_cache_may_be_empty_and_its_mask_counts_both():
    inputs = [
        IDS,
        GraphInput("attention_mask", ("batch", "total_sequence"), (5, 90)),
        GraphInput("past", ("batch", 2, "past_sequence", 16), (5, 2, 45, 16)),
    ]
    found = profile(spell_totals(inputs), AxisSpec("past", 2, 0, 100))
    assert found["past"] == ((1, 2, 0, 16), (3, 2, 10, 16), (8, 2, 100, 16))
    assert found["attention_mask"] == ((1, 1), (3, 55), (8, 2148))
    with pytest.raises(UsageError, match=r"its size is past_sequence \+ sequence"):
        profile(spell_totals(inputs), AxisSpec("attention_mask", 1, 1, 100))


def test_a_size_that_follows_from_nothing_is_refused():
    with pytest.raises(UnsupportedModelError, match="input y has an axis of size 2\\*other"):
        profile([ROWS, GraphInput("y", ("2*other",), (4,))])


def test_fixed_shapes_need_no_profile():
    assert profile([GraphInput("x", (4, 64), (4, 64))]) == {}


def test_what_was_not_asked_for_is_said_with_how_to_ask():
    ranges = find_ranges([IDS], [AxisSpec("input_ids", 0, 1, 4)], example_given=False)
    assert describe_ranges(ranges) == (
        "the engine takes batch 1 to 4 (best at 2), sequence 1 to 2048 (best at 45); otherwise "
        "with --dynamic input_ids.1=MIN..MAX"
    )
