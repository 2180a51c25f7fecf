"""Telemetry that contradicts the routing is a failure."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from moe_export.telemetry.record import CHOICES, TOKENS, LayerTelemetry
from moe_export.verify.telemetry import telemetry_failures

LAYER = SimpleNamespace(
    path="ffn", expert_ids="ids", block=SimpleNamespace(experts=SimpleNamespace(num_experts=3))
)
RIGHT = {
    "ids": np.array([[0, 2], [2, 3], [-1, 3]]),
    "n": np.array([1, 0, 2]),
    "p": np.array([0.5, 0.25, 0.25], np.float32),
    "d": np.array(3),
}


def failures(dropped=CHOICES, **outputs):
    record = LayerTelemetry("ffn", "n", "p", "d", "softmax", dropped)
    return list(telemetry_failures([record], [LAYER], {**RIGHT, **outputs}))


def test_what_the_ids_say_is_no_failure():
    assert failures() == []
    assert failures(TOKENS, d=np.array(1)) == []
    assert failures(p=np.full(3, np.nan, np.float32)) == []


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ({"n": np.array([1, 1, 1])}, "n is not what the layer's ids say"),
        ({"d": np.array(1)}, "d is 1; its ids say 3"),
        ({"p": np.array([0.5, 0.5, 0.25], np.float32)}, "p is no mean of distributions"),
        ({"p": np.array([-0.1, 0.5, 0.25], np.float32)}, "p is no mean of distributions"),
    ],
    ids=["counts", "dropped", "sum", "negative"],
)
def test_anything_else_names_the_layer_and_the_output(outputs, reason):
    [failure] = failures(**outputs)
    assert failure.startswith("telemetry of ffn: ")
    assert reason in failure
