"""What is run: random, of the example's kind, and several sets in turn."""

from __future__ import annotations

import numpy as np
import pytest

from moe_export.benchmark.cases import draw_cases, given_case, num_sets
from moe_export.benchmark.contenders import BundleContender
from moe_export.errors import UsageError
from moe_export.package.bundle import UnverifiedBundleWarning, load


@pytest.fixture(scope="module")
def text(text_bundle):
    with pytest.warns(UnverifiedBundleWarning):
        return load(text_bundle, num_threads=1)


def test_sets_are_random_and_differ(digits_bundle):
    one, many = draw_cases(load(digits_bundle), (1, 100), seed=0)
    assert (one.tokens, many.tokens) == (1, 100)
    assert len(one.inputs) == 16
    assert len(many.inputs) == 2
    for case in (one, many):
        values = [inputs["images"] for inputs in case.inputs]
        assert all(array.shape == (case.tokens, 64) for array in values)
        assert all((array != 0).mean() > 0.9 for array in values)
        assert not np.array_equal(values[0], values[1])


def test_few_tokens_take_more_sets_than_many():
    assert [num_sets(tokens) for tokens in (1, 4, 16, 512)] == [16, 16, 4, 2]


def test_seed_decides_the_inputs(digits_bundle):
    bundle = load(digits_bundle)
    first, same, other = (draw_cases(bundle, (3,), seed)[0].inputs[0] for seed in (0, 0, 1))
    assert np.array_equal(first["images"], same["images"])
    assert not np.array_equal(first["images"], other["images"])


def test_prompts_of_each_length_and_one_token_behind_the_longest(text):
    cases = draw_cases(text, (2, 9), seed=0)
    assert [case.name for case in cases] == ["prefill 2", "prefill 9", "decode 1 behind 9"]
    assert [case.tokens for case in cases] == [2, 9, 1]
    lengths = {case.name: {a.shape[2] for a in case.cache.values()} for case in cases}
    assert lengths == {"prefill 2": {0}, "prefill 9": {0}, "decode 1 behind 9": {9}}
    decode = cases[-1].inputs[0]
    assert decode["attention_mask"].shape == (1, 10)
    assert decode["position_ids"].tolist() == [[9]]


def test_decode_goes_on_where_the_prompt_ended(text):
    """One token behind a cache gives the logits of the whole text, run at once."""
    decode = draw_cases(text, (2, 9), seed=0)[-1]
    spec = text.manifest.generation
    step = BundleContender(text.runner, spec).prepare(decode, 0)()["logits"]
    generator = np.random.default_rng(0)
    drawn = [generator.integers(spec.vocabulary_size, size=(1, n)) for n in (2,) * 16 + (9,) * 8]
    ids = np.concatenate([drawn[-1], decode.inputs[0]["input_ids"]], axis=1)
    empty = {c.past: np.zeros((1, c.heads, 0, c.width), c.dtype) for c in spec.caches}
    whole = text.run(
        {
            "input_ids": ids,
            "attention_mask": np.ones((1, 10), np.int64),
            "position_ids": np.arange(10)[None],
            **empty,
        }
    )["logits"]
    assert np.abs(step[:, -1] - whole[:, -1]).max() < 1e-4 * np.abs(whole).max()


def test_given_inputs_are_taken_as_they_are(digits_bundle):
    images = np.full((7, 64), 0.5, np.float32)
    case = given_case(load(digits_bundle), "x.npz", {"images": images})
    assert (case.name, case.tokens, len(case.inputs)) == ("x.npz", 7, 1)
    assert case.inputs[0]["images"] is images


def test_given_prompts_get_positions_and_an_empty_cache(text):
    mask = np.array([[0, 1, 1], [1, 1, 1]])
    case = given_case(
        text, "x.npz", {"input_ids": np.ones((2, 3), np.int64), "attention_mask": mask}
    )
    assert case.tokens == 6
    assert case.inputs[0]["position_ids"].tolist() == [[0, 0, 1], [0, 1, 2]]
    assert {a.shape[2] for a in case.cache.values()} == {0}
    BundleContender(text.runner, text.manifest.generation).prepare(case, 0)()


@pytest.mark.parametrize(
    ("inputs", "said"),
    [({}, "lack images"), ({"images": np.zeros((1, 64)), "more": np.zeros(1)}, "no input more")],
)
def test_given_inputs_must_be_the_bundles(digits_bundle, inputs, said):
    with pytest.raises(UsageError, match=said):
        given_case(load(digits_bundle), "x.npz", inputs)
