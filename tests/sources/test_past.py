"""A causal model with its cache among its inputs, or the reason why not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.plan import AxisSpec, BuildPlan
from moe_export.sources.hf_tasks import EXAMPLE_BATCH
from moe_export.sources.past import with_past
from moe_export.sources.source import load_module, load_source
from tests.families.all_families import make_named_model

transformers = pytest.importorskip("transformers")


def plan(**options):
    return BuildPlan(output=Path("unused"), with_past=True, **options)


def load(model, example=None, **options):
    return load_module(model, example, plan(**options), source="test")


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_example_goes_on_from_the_cache_of_its_first_tokens(family):
    model = make_named_model(family)
    loaded = load(model)
    inputs, batch = loaded.inputs, EXAMPLE_BATCH
    assert inputs["input_ids"].shape == inputs["position_ids"].shape == (batch, 5)
    assert inputs["attention_mask"].shape == (batch, 11)
    assert all(inputs[c.past].shape == (batch, c.heads, 6, c.width) for c in loaded.spec.caches)
    outputs = loaded.run(inputs)
    ids = torch.cat([load_ids(model), inputs["input_ids"]], dim=1)
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[:, 6:]
    torch.testing.assert_close(outputs["logits"], expected, atol=1e-5, rtol=1e-5)
    assert all(outputs[c.present].shape[2] == 11 for c in loaded.spec.caches)


def load_ids(model):
    """The first tokens of the example."""
    without = load_module(model, None, BuildPlan(output=Path("unused")), source="test")
    return without.inputs["input_ids"][:, :6]


def test_spec_says_windows_widths_and_ids():
    spec = load(make_named_model("gpt_oss", eos_token_id=[3, 4], pad_token_id=5)).spec
    assert [c.sliding_window for c in spec.caches] == [8, 8, None, None]
    assert (spec.eos_token_ids, spec.pad_token_id) == ((3, 4), 5)
    latent = load(make_named_model("deepseek_v3")).spec
    # What is cached are the latent vectors and the rotated keys, one head of each.
    assert [(c.heads, c.width) for c in latent.caches] == [(1, 32), (1, 8)] * 2
    assert (latent.vocabulary_size, latent.max_positions) == (128, 256)


def test_sampling_defaults_come_from_the_generation_config():
    model = make_named_model("mixtral")
    model.generation_config.update(temperature=0.6, top_k=20, repetition_penalty=1.1)
    sampling = load(model).spec.sampling
    assert (sampling.temperature, sampling.top_k) == (0.6, 20)
    assert (sampling.top_p, sampling.repetition_penalty) == (None, 1.1)


def test_what_generate_leaves_out_is_remarked():
    model = make_named_model("mixtral")
    model.generation_config.update(no_repeat_ngram_size=3, num_beams=4, typical_p=1.0)
    (remark,) = load(model).remarks
    assert "no_repeat_ngram_size=3, num_beams=4, which generate does not do" in remark


def test_a_plain_module_is_refused():
    with pytest.raises(
        UsageError, match="needs a Hugging Face causal language model; found Linear"
    ):
        load(nn.Linear(3, 3), torch.randn(2, 3))


def test_a_model_without_a_head_is_refused():
    with pytest.raises(UsageError, match="MixtralModel does not generate"):
        load(make_named_model("mixtral").model)


def test_a_layer_with_another_cache_is_refused():
    model = make_named_model("qwen3_next")
    with pytest.raises(UnsupportedModelError, match="layer 0 of Qwen3NextForCausalLM keeps a Lin"):
        load(model)


def test_axes_cannot_be_asked_for():
    with pytest.raises(UsageError, match="leave out --dynamic"):
        load(make_named_model("mixtral"), static=(AxisSpec("input_ids", 0),))


def test_an_example_that_cannot_be_split_is_refused():
    with pytest.raises(UsageError, match="input_ids of 3 tokens cannot be split"):
        load(make_named_model("mixtral"), {"input_ids": torch.zeros(1, 3, dtype=torch.int64)})


def test_folder_and_its_generation_config_are_found(tmp_path):
    model = make_named_model("mixtral")
    model.generation_config.update(eos_token_id=[7, 9])
    model.save_pretrained(tmp_path / "model")
    loaded = load_source(str(tmp_path / "model"), plan())
    assert loaded.folder == tmp_path / "model"
    assert loaded.spec.eos_token_ids == (7, 9)
    assert load(make_named_model("mixtral")).folder is None


def test_generation_config_is_read_where_the_model_was_built_from_weights(tmp_path):
    """As quantized checkpoints are: transformers then sees the weights alone."""
    model = make_named_model("mixtral")
    model.generation_config.update(eos_token_id=[7, 9])
    model.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    other = transformers.MixtralForCausalLM.from_pretrained(
        None, config=config, state_dict=model.state_dict()
    )
    plain = load_module(other, None, BuildPlan(output=Path("unused")), source="test")
    spec = with_past(dataclasses.replace(plain, folder=tmp_path), plan()).spec
    assert spec.eos_token_ids == (7, 9)
