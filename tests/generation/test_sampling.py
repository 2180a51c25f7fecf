"""Sampling against transformers' own logits processors, and against counted draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe_export.generation.sampling import (
    Sampling,
    choose_tokens,
    resolve_sampling,
    token_probabilities,
)
from moe_export.generation.spec import SamplingDefaults

processors = pytest.importorskip("transformers.generation.logits_process")


def draw_logits(rows=5, tokens=40):
    return (np.random.default_rng(3).standard_normal((rows, tokens)) * 3).astype(np.float32)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 1.7, "top_k": 7},
        {"top_k": 400},
        {"top_p": 0.9},
        {"top_p": 0.01},
        {"temperature": 0.8, "top_k": 12, "top_p": 0.75},
    ],
)
def test_probabilities_are_those_of_transformers(settings):
    logits = draw_logits()
    expected = torch.from_numpy(logits)
    if "temperature" in settings:
        expected = processors.TemperatureLogitsWarper(settings["temperature"])(None, expected)
    if "top_k" in settings:
        expected = processors.TopKLogitsWarper(settings["top_k"])(None, expected)
    if "top_p" in settings:
        expected = processors.TopPLogitsWarper(settings["top_p"])(None, expected)
    found = token_probabilities(logits, Sampling(do_sample=True, **settings))
    np.testing.assert_allclose(found, expected.softmax(-1).numpy(), atol=1e-6)


def test_penalty_is_that_of_transformers():
    logits, ids = draw_logits(), np.array([[1, 2, 2], [3, 4, 5], [0, 0, 0], [39, 1, 7], [8, 9, 10]])
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, ids, values=True, axis=1)
    penalize = processors.RepetitionPenaltyLogitsProcessor(3.0)
    expected = penalize(torch.from_numpy(ids), torch.from_numpy(logits)).argmax(-1).numpy()
    sampling = Sampling(repetition_penalty=3.0)
    found = choose_tokens(logits, seen, sampling, np.random.default_rng(0))
    np.testing.assert_array_equal(found, expected)


def test_tokens_are_drawn_as_often_as_their_probability_says():
    logits = np.log(np.array([[0.5, 0.0, 0.3, 0.2]]) + 1e-30).repeat(20000, axis=0)
    sampling = Sampling(do_sample=True)
    tokens = choose_tokens(logits, np.zeros(logits.shape, bool), sampling, np.random.default_rng(0))
    shares = np.bincount(tokens, minlength=4) / len(tokens)
    np.testing.assert_allclose(shares, [0.5, 0.0, 0.3, 0.2], atol=0.02)
    assert shares[1] == 0


def test_what_is_asked_for_comes_before_the_source_and_the_source_before_nothing():
    source = SamplingDefaults(temperature=0.6, top_k=20)
    found = resolve_sampling(
        source,
        do_sample=True,
        temperature=None,
        top_k=5,
        top_p=None,
        repetition_penalty=None,
    )
    assert found == Sampling(do_sample=True, temperature=0.6, top_k=5, top_p=1.0)
