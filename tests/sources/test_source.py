"""From what the user names to a loaded model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.plan import BuildPlan, InputSpec
from moe_export.sources.model import restore_dtypes, to_float32
from moe_export.sources.source import load_module, load_source

PLAN = BuildPlan(output=Path("unused"))
WITH_INPUT = BuildPlan(output=Path("unused"), inputs=(InputSpec("input", (2, 3)),))

CODE = """
import torch
from torch import nn

def build():
    return nn.Linear(3, 2)

def build_with_inputs():
    return nn.Linear(3, 2), torch.ones(4, 3)

def build_with_named_inputs():
    return nn.Linear(3, 2), {"input": torch.ones(4, 3)}

def build_weights():
    return nn.Linear(3, 2).state_dict()

def build_nothing():
    pass

class Recipes:
    @staticmethod
    def build():
        return nn.Linear(3, 2)

module = nn.Linear(3, 2)
number = 3
"""


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """Name of an importable module in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = "recipes_of_test_source"
    monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / f"{name}.py").write_text(CODE)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["build", "Recipes.build", "module"])
def test_callable_is_loaded_without_trust(recipes, name):
    loaded = load_source(f"{recipes}:{name}", WITH_INPUT)
    assert not PLAN.trust
    assert isinstance(loaded.model, nn.Linear)
    assert not loaded.model.training
    assert loaded.source == f"{recipes}:{name}"
    assert loaded.inputs["input"].shape == (2, 3)


@pytest.mark.parametrize("name", ["build_with_inputs", "build_with_named_inputs"])
def test_callable_may_bring_inputs(recipes, name):
    loaded = load_source(f"{recipes}:{name}", PLAN)
    assert torch.equal(loaded.inputs["input"], torch.ones(4, 3))


def test_option_wins_over_the_inputs_that_the_callable_brings(recipes):
    loaded = load_source(f"{recipes}:build_with_inputs", WITH_INPUT)
    assert loaded.inputs["input"].shape == (2, 3)


def test_inputs_file_is_used(recipes, tmp_path):
    np.savez(tmp_path / "inputs.npz", input=np.float64([[1, 2, 3]]))
    plan = BuildPlan(output=Path("unused"), inputs_file=tmp_path / "inputs.npz")
    loaded = load_source(f"{recipes}:build", plan)
    assert loaded.inputs["input"].dtype == torch.float32
    assert loaded.inputs["input"].tolist() == [[1, 2, 3]]


def test_missing_input_shows_the_signature_of_forward(recipes):
    with pytest.raises(UsageError, match=r"Linear\.forward\(input\) needs an example of input"):
        load_source(f"{recipes}:build", PLAN)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("build_weights", "must return a module, .*; found OrderedDict"),
        ("build_nothing", "must return a module, .*; found NoneType"),
        ("number", "is a int, not something that can be called"),
        ("absent", "absent"),
        ("Recipes.absent", "absent"),
    ],
)
def test_callable_that_gives_no_module_is_refused(recipes, name, message):
    with pytest.raises(UsageError, match=f"^{recipes}:{name}.*{message}"):
        load_source(f"{recipes}:{name}", PLAN)


def test_missing_module_is_named():
    with pytest.raises(UsageError, match="No module named 'no_such_module_anywhere'"):
        load_source("no_such_module_anywhere:build", PLAN)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_file_needs_trust(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / f"model{suffix}"
    torch.save(nn.Linear(3, 2), path)
    with pytest.raises(UsageError, match="pass --trust"):
        load_source(str(path), WITH_INPUT)
    trusting = BuildPlan(output=Path("unused"), inputs=WITH_INPUT.inputs, trust=True)
    assert isinstance(load_source(str(path), trusting).model, nn.Linear)


@pytest.mark.parametrize("name", ["model.onnx", "model"])
def test_file_of_another_suffix_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"expected a file that ends in \.pt, .* or \.safetensors"):
        load_source(str(tmp_path / name), PLAN)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_weights_without_a_factory_say_what_is_missing(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"weights alone: pass --factory MODULE:CALLABLE"):
        load_source(str(tmp_path / name), PLAN)


@pytest.mark.parametrize("name", ["absent.pt", "absent", "a/b/absent"])
def test_source_that_is_not_there_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"^{name} does not exist"):
        load_source(name, PLAN)


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"folder without config\.json"):
        load_source(str(tmp_path), PLAN)


@pytest.mark.parametrize("config", [{}, {"model_type": "no_such_model"}])
def test_folder_that_transformers_does_not_know_is_refused(tmp_path, config):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="transformers cannot load"):
        load_source(str(tmp_path), PLAN)


def test_huggingface_folder_brings_its_own_inputs(tmp_path):
    save_tiny_mixtral(tmp_path, dtype=torch.bfloat16)
    loaded = load_source(str(tmp_path), PLAN)
    assert loaded.kind == "huggingface"
    assert set(loaded.inputs) == {"input_ids", "attention_mask"}
    assert int(loaded.inputs["input_ids"].max()) < loaded.integer_ranges["input_ids"] == 31
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert set(loaded.source_dtypes.values()) == {torch.bfloat16}
    assert "logits" in loaded.run(loaded.inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted_and_restored_exactly(dtype):
    model = nn.Sequential(nn.Linear(7, 5).to(dtype), nn.BatchNorm1d(5), nn.Linear(5, 3).double())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    converted = to_float32(model)
    assert converted == {"0.weight": dtype, "0.bias": dtype}
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(model[0].weight, before["0.weight"].float())
    assert model[2].weight.dtype == torch.float64
    restore_dtypes(model, converted)
    after = model.state_dict()
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items()}
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_half_precision_module_runs_on_float32_inputs():
    model = nn.Linear(3, 2).half()
    loaded = load_module(model, torch.ones(4, 3).half(), PLAN, source="a module")
    assert loaded.inputs["input"].dtype == torch.float32
    assert loaded.run(loaded.inputs)["output"].dtype == torch.float32
    assert loaded.source_dtypes == {"weight": torch.float16, "bias": torch.float16}


def test_model_that_does_not_run_is_refused_with_the_shapes():
    loaded = load_module(nn.Linear(3, 2), torch.ones(4, 5), PLAN, source="a module")
    with pytest.raises(
        UnsupportedModelError, match=r"does not run in eager PyTorch on input \[4, 5\]"
    ):
        loaded.run(loaded.inputs)


def save_tiny_mixtral(folder, dtype=torch.float32, drop=None, add=()):
    """A checkpoint with one tensor left out, or some that no module has."""
    import transformers
    from safetensors.torch import load_file, save_file

    config = transformers.MixtralConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        max_position_embeddings=32,
    )
    transformers.MixtralForCausalLM(config).to(dtype).save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = {name: t for name, t in load_file(path).items() if name != drop}
    tensors |= {name: torch.zeros(3) for name in add}
    save_file(tensors, path, metadata={"format": "pt"})


def test_checkpoint_with_missing_weights_is_refused(tmp_path):
    save_tiny_mixtral(tmp_path, drop="model.norm.weight")
    with pytest.raises(UsageError, match=r"lacks 1 weights of MixtralForCausalLM.*norm\.weight"):
        load_source(str(tmp_path), BuildPlan(output=Path("unused")))


def test_checkpoint_with_unexpected_weights_is_remarked(tmp_path):
    save_tiny_mixtral(tmp_path, add=("model.extra.weight",))
    (remark,) = load_source(str(tmp_path), BuildPlan(output=Path("unused"))).remarks
    assert remark.endswith("has 1 weights that the model does not use: model.extra.weight")


def test_truncated_checkpoint_is_refused(tmp_path):
    save_tiny_mixtral(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"model\.safetensors is not a whole safetensors file"):
        load_source(str(tmp_path), BuildPlan(output=Path("unused")))


def test_mask_follows_the_ids_that_are_given(tmp_path):
    save_tiny_mixtral(tmp_path)
    plan = BuildPlan(output=Path("unused"), inputs=(InputSpec("input_ids", (1, 5), "int64"),))
    assert load_source(str(tmp_path), plan).inputs["attention_mask"].shape == (1, 5)


def test_callable_that_raises_is_named(tmp_path, monkeypatch):
    (tmp_path / "raising.py").write_text("def make():\n    raise KeyError('weights')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"raising:make\(\) raised KeyError"):
        load_source("raising:make", BuildPlan(output=Path("unused")))
