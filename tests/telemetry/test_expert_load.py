"""The figures that follow from a layer's counts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moe_export.errors import BundleError
from moe_export.telemetry.expert_load import ExpertLoad
from moe_export.telemetry.record import CHOICES, LayerTelemetry


def load_of(tokens, probability=None, dropped=0, path="layer"):
    tokens = np.array(tokens, np.int64)
    if probability is None:
        probability = tokens / max(tokens.sum(), 1)
    return ExpertLoad(path, tokens, np.array(probability, np.float32), dropped, "softmax", CHOICES)


def test_even_load_has_balance_one():
    assert load_of([5, 5, 5, 5]).balance == pytest.approx(1)
    assert load_of([5, 5, 5, 5], [0.7, 0.1, 0.1, 0.1]).balance == pytest.approx(1)


def test_collapse_on_one_expert_has_balance_n():
    assert load_of([9, 0, 0, 0]).balance == pytest.approx(4)


def test_balance_is_n_times_the_sum_of_f_and_p():
    load = load_of([6, 2, 1, 1], [0.4, 0.3, 0.2, 0.1])
    assert load.balance == pytest.approx(4 * (0.6 * 0.4 + 0.2 * 0.3 + 0.1 * 0.2 + 0.1 * 0.1))


def test_probability_of_experts_that_do_nothing_is_left_out_of_the_balance():
    assert load_of([5, 5], [0.3, 0.3]).balance == pytest.approx(1)


@pytest.mark.parametrize("probability", [[0.0, 0.0], [np.nan, 0.5]])
def test_no_balance_without_tokens_or_probabilities(probability):
    assert load_of([0, 0], probability).balance is None
    assert load_of([1, 0], probability).balance is None


def test_dead_experts_have_no_token():
    assert load_of([3, 0, 1, 0]).dead == (1, 3)


def test_overloaded_is_above_twice_the_even_share_and_the_fullest_first():
    assert load_of([8, 8, 8, 8, 8, 8, 8, 8]).overloaded == ()
    assert load_of([2, 1, 1, 0]).overloaded == ()  # exactly twice
    assert load_of([41, 60, 1, 1, 1, 1, 1, 1]).overloaded == (1, 0)


def test_relative_load_is_in_even_shares():
    assert load_of([6, 2, 0, 0]).relative_load.tolist() == [3, 1, 0, 0]
    assert load_of([0, 0]).relative_load.tolist() == [0, 0]


RECORD = LayerTelemetry("layer", "a", "b", "c", "softmax", CHOICES)


def test_load_is_read_from_the_outputs_that_the_record_names():
    outputs = {
        "a": np.array([3, 1]), "b": np.array([0.6, 0.4], np.float32), "c": np.array(2), "y": None,
    }  # fmt: skip
    load = ExpertLoad.read(RECORD, outputs)
    assert (load.path, load.total, load.dropped_tokens) == ("layer", 4, 2)


def test_a_missing_output_is_named():
    with pytest.raises(BundleError, match="no output b"):
        ExpertLoad.read(RECORD, {"a": np.array([1])})


def test_json_has_no_number_that_json_lacks():
    text = json.dumps(load_of([0, 0], [np.nan, 0.5]).to_json(), allow_nan=False)
    assert json.loads(text)["mean_probability"] == [None, 0.5]
    assert json.loads(text)["balance"] is None


def test_record_survives_the_manifest():
    assert LayerTelemetry.from_json(json.loads(json.dumps(RECORD.to_json()))) == RECORD


@pytest.mark.parametrize(
    "change", [{"path": 3}, {"extra": "x"}, {"dropped": None}], ids=["number", "unknown", "null"]
)
def test_malformed_record_is_refused(change):
    with pytest.raises(BundleError, match="telemetry must have the texts path"):
        LayerTelemetry.from_json({**RECORD.to_json(), **change})


def test_incomplete_record_is_refused():
    with pytest.raises(BundleError, match="telemetry must have the texts path"):
        LayerTelemetry.from_json({"path": "x"})
