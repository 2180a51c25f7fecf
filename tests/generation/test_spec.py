"""The manifest's section is read without trusting it."""

from __future__ import annotations

import copy
import json

import pytest

from moe_export.generation.spec import CacheTensor, GenerationSpec, SamplingDefaults

SPEC = GenerationSpec(
    (
        CacheTensor("past_key_values.0.key", "present.0.key", 2, 16, sliding_window=8),
        CacheTensor("past_key_values.0.value", "present.0.value", 2, 24),
    ),
    vocabulary_size=128,
    eos_token_ids=(1, 2),
    pad_token_id=0,
    max_positions=256,
    sampling=SamplingDefaults(temperature=0.6, top_k=20),
    tokenizer="tokenizer/tokenizer.json",
)
INPUTS = ["input_ids", "attention_mask", "position_ids", *(c.past for c in SPEC.caches)]
OUTPUTS = ["logits", *(c.present for c in SPEC.caches)]
FILES = ["model.onnx", "tokenizer/tokenizer.json"]


def read(values):
    return GenerationSpec.from_json(values, INPUTS, OUTPUTS, FILES)


def test_what_is_written_is_read():
    assert read(json.loads(json.dumps(SPEC.to_json()))) == SPEC


def set_cache(key, value):
    return lambda v: v["caches"][0].update({key: value})


DAMAGES = {
    "no caches": lambda v: v.update(caches=[]),
    "caches missing": lambda v: v.pop("caches"),
    "a cache twice": lambda v: v["caches"].append(v["caches"][0]),
    "a cache left out": lambda v: v["caches"].pop(),
    "unknown input": set_cache("past", "x"),
    "unknown output": set_cache("present", "x"),
    "name is no text": set_cache("past", 3),
    "no heads": set_cache("heads", 0),
    "width of a billion in text": set_cache("width", "1000000000"),
    "window below one": set_cache("sliding_window", 0),
    "other type": set_cache("dtype", "object"),
    "unknown entry of a cache": set_cache("code", "x"),
    "unknown entry": lambda v: v.update(code="x"),
    "vocabulary is true": lambda v: v.update(vocabulary_size=True),
    "negative end": lambda v: v.update(eos_token_ids=[-1]),
    "end is text": lambda v: v.update(eos_token_ids="12"),
    "padding is a fraction": lambda v: v.update(pad_token_id=0.5),
    "temperature is text": lambda v: v["sampling"].update(temperature="hot"),
    "unknown sampling": lambda v: v["sampling"].update(code=1),
    "sampling is a list": lambda v: v.update(sampling=[1]),
    "tokenizer outside": lambda v: v.update(tokenizer="tokenizer/../../secret.json"),
    "tokenizer not listed": lambda v: v.update(tokenizer="tokenizer/other.json"),
    "tokenizer is another file": lambda v: v.update(tokenizer="model.onnx"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_section_is_refused(damage):
    values = copy.deepcopy(json.loads(json.dumps(SPEC.to_json())))
    damage(values)
    with pytest.raises((TypeError, KeyError, ValueError, AttributeError)):
        read(values)


def test_a_section_that_is_no_object_is_refused():
    with pytest.raises(TypeError, match="expected an object"):
        read([1])


def test_an_input_that_no_one_feeds_is_refused():
    with pytest.raises(ValueError, match="the graph takes"):
        GenerationSpec.from_json(SPEC.to_json(), [*INPUTS, "token_type_ids"], OUTPUTS, FILES)
