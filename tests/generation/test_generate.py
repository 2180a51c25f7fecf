"""``Bundle.generate`` and ``Bundle.stream`` on one small model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moe_export.errors import BundleError, UsageError
from moe_export.generation import stream
from moe_export.generation.generate import LongTextWarning
from moe_export.package.manifest import read_manifest
from moe_export.runners.onnxruntime import OnnxRuntimeRunner


@pytest.fixture
def runs(monkeypatch):
    """Shapes of the ids in every run of a session."""
    shapes = []
    run = OnnxRuntimeRunner.run_keeping

    def spy(self, inputs, kept, keep):
        shapes.append(inputs["input_ids"].shape)
        return run(self, inputs, kept, keep)

    monkeypatch.setattr(OnnxRuntimeRunner, "run_keeping", spy)
    return shapes


def test_a_prompt_is_run_once_and_each_new_token_once(exported, prompts, runs):
    exported.bundle.generate(*prompts(2, 9), max_new_tokens=20, eos_token_id=[])
    # The last token is given out and not fed again.
    assert runs == [(2, 9)] + [(2, 1)] * 19


def test_a_long_prompt_is_run_in_parts_and_gives_the_same(exported, prompts, runs, monkeypatch):
    ids, mask = prompts(2, 21)
    whole = exported.bundle.generate(ids, mask, max_new_tokens=12)
    runs.clear()
    monkeypatch.setattr(stream, "_PREFILL_POSITIONS", 16)
    np.testing.assert_array_equal(exported.bundle.generate(ids, mask, max_new_tokens=12), whole)
    assert runs[:3] == [(2, 8), (2, 8), (2, 5)]


def test_a_prompt_is_run_whole_where_tokens_compete(exported, prompts, runs, monkeypatch):
    monkeypatch.setattr(stream, "_PREFILL_POSITIONS", 16)
    manifest = dataclasses.replace(exported.bundle.manifest, batch_coupled=True)
    coupled = dataclasses.replace(exported.bundle, manifest=manifest)
    coupled.generate(*prompts(2, 21), max_new_tokens=1)
    assert runs == [(2, 21)]


def test_rows_end_where_eagers_end(exported, prompts):
    """An id that the rows reach at different steps, one of them never."""
    ids, mask = prompts(3, 13)
    free = exported.eager(ids, mask, max_new_tokens=24)[:, 13:]
    ends = next(
        token
        for token in range(128)
        if len({tuple(np.flatnonzero(row == token)[:1]) for row in free}) == 3
    )
    expected = exported.eager(ids, mask, max_new_tokens=24, eos_token_id=ends)
    found = exported.bundle.generate(ids, mask, max_new_tokens=24, eos_token_id=ends)
    ended = [np.flatnonzero(row == ends)[:1] for row in free]
    for row, at in enumerate(ended):
        length = 13 + (int(at[0]) + 1 if len(at) else 24)
        np.testing.assert_array_equal(found[row, :length], expected[row, :length])
        assert (found[row, length:] == exported.model.config.pad_token_id).all()


def test_generation_stops_when_every_row_has_ended(exported, prompts, runs):
    ids, mask = prompts(1, 5)
    first = exported.bundle.generate(ids, mask, max_new_tokens=3)[0, 5:]
    runs.clear()
    found = exported.bundle.generate(
        ids, mask, max_new_tokens=50, eos_token_id=[int(first[0]), 127]
    )
    assert found.shape == (1, 6)
    assert len(runs) == 1


def test_rows_of_different_lengths_are_padded(exported, prompts):
    ids, mask = prompts(3, 10)
    rows = [row[kept == 1].tolist() for row, kept in zip(ids, mask, strict=True)]
    expected = exported.bundle.generate(ids, mask, max_new_tokens=8)
    found = exported.bundle.generate(rows, max_new_tokens=8)
    np.testing.assert_array_equal(found[:, -8:], expected[:, -8:])


def test_tokens_are_streamed_before_the_next_run(exported, prompts, runs):
    ids, mask = prompts(2, 6)
    expected = exported.bundle.generate(ids, mask, max_new_tokens=4)[:, 6:]
    runs.clear()
    for step, tokens in enumerate(exported.bundle.stream(ids, mask, max_new_tokens=4)):
        np.testing.assert_array_equal(tokens, expected[:, step])
        assert len(runs) == step + 1


def test_a_seed_gives_the_same_draws_and_another_gives_others(exported, prompts):
    def draw(seed):
        return exported.bundle.generate(
            *prompts(2, 6), max_new_tokens=16, do_sample=True, temperature=2.0, seed=seed
        )

    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()


def test_sampling_from_one_token_is_greedy(exported, prompts):
    ids, mask = prompts(2, 6)
    greedy = exported.bundle.generate(ids, mask, max_new_tokens=8)
    drawn = exported.bundle.generate(ids, mask, max_new_tokens=8, do_sample=True, top_k=1)
    np.testing.assert_array_equal(drawn, greedy)


def test_repetition_penalty_is_eagers(exported, prompts):
    ids, mask = prompts(2, 6, padded=False)
    expected = exported.eager(ids, mask, max_new_tokens=24, repetition_penalty=1.4)
    found = exported.bundle.generate(ids, mask, max_new_tokens=24, repetition_penalty=1.4)
    np.testing.assert_array_equal(found, expected)
    assert (expected != exported.eager(ids, mask, max_new_tokens=24)).any()


def test_more_tokens_than_positions_warn(exported, prompts):
    with pytest.warns(LongTextWarning, match="256 positions"):
        exported.bundle.stream(*prompts(1, 6), max_new_tokens=251)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number above 0"),
        ({"max_tokens": 5}, "generate has no max_tokens; it takes max_new_tokens"),
        ({"do_sample": True, "temperature": 0.0}, "temperature must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k must be a whole number"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be an id"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(exported, prompts, options, message, runs):
    with pytest.raises(UsageError, match=message):
        exported.bundle.stream(*prompts(1, 3), **options)
    assert runs == []


def test_a_bundle_without_a_cache_says_what_to_do(exported):
    manifest = dataclasses.replace(exported.bundle.manifest, generation=None)
    bundle = dataclasses.replace(exported.bundle, manifest=manifest)
    with pytest.raises(UsageError, match="build it again with --with-past"):
        bundle.generate([[1, 2]])


def test_a_manifest_whose_caches_the_graph_lacks_is_refused(exported, tmp_path):
    text = exported.bundle.manifest.to_text().replace('"past_key_values.0.key"', '"other"', 1)
    assert '"other"' in text
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match="generation"):
        read_manifest(tmp_path)
