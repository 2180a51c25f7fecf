"""A checkpoint is loaded as what its configuration says, and called with what that takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import moe_export
from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.plan import BuildPlan
from moe_export.sources.hf_tasks import EXAMPLE_BATCH
from moe_export.sources.source import load_module, load_source
from tests.families.all_families import make_named_model
from tests.families.without_hook import vitpose_inputs

transformers = pytest.importorskip("transformers")

TEXT = {"input_ids": (EXAMPLE_BATCH, 11), "attention_mask": (EXAMPLE_BATCH, 11)}
DECODER = {"decoder_input_ids": (EXAMPLE_BATCH, 7), "decoder_attention_mask": (EXAMPLE_BATCH, 7)}
SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}


def load(folder):
    return load_source(str(folder), BuildPlan(output=Path("bundle")))


def shapes(loaded):
    return {name: tuple(tensor.shape) for name, tensor in loaded.inputs.items()}


@pytest.fixture(scope="module")
def switch_folder(tmp_path_factory):
    """A checkpoint of an encoder with a decoder."""
    folder = tmp_path_factory.mktemp("switch")
    make_named_model("switch_transformers").save_pretrained(folder)
    return folder


def edit_config(folder, target, **changes):
    """A copy of the checkpoint with other values in its config.json; None removes one."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    (target / "config.json").write_text(json.dumps(kept))
    return target


def test_encoder_and_decoder_take_ids_of_two_lengths(switch_folder):
    loaded = load(switch_folder)
    assert type(loaded.model).__name__ == "SwitchTransformersForConditionalGeneration"
    assert shapes(loaded) == TEXT | DECODER
    assert loaded.constants == {"use_cache": False}
    assert loaded.integer_ranges == {"input_ids": 128, "decoder_input_ids": 128}
    assert "decoder_input_ids" in loaded.remarks[0]
    assert set(loaded.run(loaded.inputs)) == {"logits", "encoder_last_hidden_state"}


def test_without_architectures_the_likeliest_class_is_taken_and_said(switch_folder, tmp_path):
    loaded = load(edit_config(switch_folder, tmp_path / "unnamed", architectures=None))
    assert type(loaded.model).__name__ == "SwitchTransformersForConditionalGeneration"
    assert any("names no architecture" in r and "Seq2SeqLM" in r for r in loaded.remarks)


def test_an_architecture_that_transformers_lacks_is_named(switch_folder, tmp_path):
    folder = edit_config(switch_folder, tmp_path / "other", architectures=["SwitchForOddThings"])
    with pytest.raises(UnsupportedModelError, match=r"SwitchForOddThings .*does not have"):
        load(folder)


def test_code_of_the_checkpoint_needs_trust(switch_folder, tmp_path):
    folder = edit_config(
        switch_folder,
        tmp_path / "own",
        architectures=["SwitchForOddThings"],
        auto_map={"AutoModelForSeq2SeqLM": "odd.SwitchForOddThings"},
    )
    with pytest.raises(UnsupportedModelError, match=r"SwitchForOddThings.* --trust"):
        load(folder)


@pytest.mark.parametrize(
    ("architecture", "output"),
    [
        ("Qwen3MoeForCausalLM", (EXAMPLE_BATCH, 11, 128)),
        ("Qwen3MoeModel", (EXAMPLE_BATCH, 11, 32)),
        ("Qwen3MoeForSequenceClassification", (EXAMPLE_BATCH, 2)),
        ("Qwen3MoeForTokenClassification", (EXAMPLE_BATCH, 11, 2)),
    ],
)
def test_every_head_of_a_family_is_called_with_texts(architecture, output, tmp_path):
    model = getattr(transformers, architecture)(transformers.Qwen3MoeConfig(**SMALL))
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded.model).__name__ == architecture
    assert shapes(loaded) == TEXT
    assert bool(loaded.remarks) == (architecture != "Qwen3MoeForCausalLM")
    assert [tuple(t.shape) for t in loaded.run(loaded.inputs).values()] == [output]


def test_an_encoder_alone_is_called_without_a_cache_argument_it_lacks():
    config = transformers.BertConfig(
        vocab_size=128,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    plan = BuildPlan(output=Path("bundle"))
    loaded = load_module(transformers.BertForMaskedLM(config), None, plan, source="bert")
    assert shapes(loaded) == TEXT
    assert loaded.constants == {}
    assert tuple(loaded.run(loaded.inputs)["logits"].shape) == (EXAMPLE_BATCH, 11, 128)


def test_images_have_the_size_of_the_configuration():
    plan = BuildPlan(output=Path("bundle"))
    model = make_named_model("vitpose_backbone")
    loaded = load_module(model, None, plan, source="vitpose")
    assert shapes(loaded) == {"pixel_values": (EXAMPLE_BATCH, 3, 64, 48)}


def test_a_model_of_sounds_says_what_to_pass():
    config = transformers.ASTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_length=64,
        num_mel_bins=32,
    )
    plan = BuildPlan(output=Path("bundle"))
    with pytest.raises(UsageError, match="--input input_values=SIZES"):
        load_module(transformers.ASTModel(config), None, plan, source="ast")
    given = {"input_values": torch.randn(2, 64, 32)}
    loaded = load_module(transformers.ASTModel(config), given, plan, source="ast")
    assert shapes(loaded) == {"input_values": (2, 64, 32)}


def test_remark_names_the_inputs_that_are_given():
    model = make_named_model("vitpose_backbone")
    loaded = load_module(model, vitpose_inputs(0), BuildPlan(output=Path("bundle")), source="test")
    assert loaded.remarks == ("VitPoseBackbone is called with pixel_values, dataset_index",)


def test_factory_beside_a_model_in_memory_is_refused(tmp_path):
    with pytest.raises(UsageError, match="factory builds the model of a file with weights"):
        moe_export.build(make_named_model("mixtral"), output=tmp_path / "b", factory="m:make")
    assert list(tmp_path.iterdir()) == []
