"""State dicts and safetensors with ``--factory``: what fits is loaded, what does not is named."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.plan import BuildPlan
from moe_export.sources.checkpoint import open_checkpoint
from moe_export.sources.source import load_source

CODE = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self, tied=True, persistent=True):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.register_buffer("scale", torch.ones(3), persistent=persistent)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids)) * self.scale[0]

def make():
    return Tied(), torch.zeros(2, 3, dtype=torch.int64)

def make_untied():
    return Tied(tied=False), torch.zeros(2, 3, dtype=torch.int64)

def make_half():
    return Tied().half(), torch.zeros(2, 3, dtype=torch.int64)

def make_meta():
    with torch.device("meta"):
        model = Tied()
    return model, torch.zeros(2, 3, dtype=torch.int64)

def make_meta_with_temporary_buffer():
    with torch.device("meta"):
        model = Tied(persistent=False)
    return model, torch.zeros(2, 3, dtype=torch.int64)

def make_weights():
    return {}

def make_error():
    raise LookupError("no such size")
"""
FACTORY = "factories_of_test_weights"


@pytest.fixture(autouse=True)
def factories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / f"{FACTORY}.py").write_text(CODE)
    yield
    sys.modules.pop(FACTORY, None)


def plan(name="make", **options):
    return BuildPlan(output=Path("unused"), factory=f"{FACTORY}:{name}", **options)


def make_state():
    """The state dict that fits ``make``."""
    generator = torch.Generator().manual_seed(5)
    embed = torch.randn(7, 4, generator=generator)
    return {
        "embed.weight": embed,
        "head.weight": embed,
        "scale": torch.tensor([2.0, 3.0, 4.0]),
        "steps": torch.tensor(9),
    }


def write_safetensors(path, state):
    save_file({name: tensor.clone() for name, tensor in state.items()}, path)


def write_shards(folder, state, **changes):
    """Two shards and their index."""
    names, weight_map = list(state), {}
    for number, part in enumerate((names[:2], names[2:])):
        write_safetensors(folder / f"part-{number}.safetensors", {n: state[n] for n in part})
        weight_map |= dict.fromkeys(part, f"part-{number}.safetensors")
    content = {"weight_map": weight_map | changes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def save(form, state):
    """Write ``state`` in one of the forms that weights come in; return what names it."""
    if form == "safetensors":
        write_safetensors("weights.safetensors", state)
        return "weights.safetensors"
    if form in ("index", "folder"):
        folder = Path("folder")
        folder.mkdir()
        write_shards(folder, state)
        return "folder" if form == "folder" else "folder/model.safetensors.index.json"
    torch.save(state, "weights.pt", _use_new_zipfile_serialization=form == "pt")
    return "weights.pt"


FORMS = ["pt", "legacy pt", "safetensors", "index", "folder"]


@pytest.mark.parametrize("factory", ["make", "make_meta"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_loaded_into_what_the_factory_builds(form, factory):
    state = make_state()
    source = save(form, state)
    loaded = load_source(source, plan(factory))
    found = loaded.model.state_dict()
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert loaded.model.head.weight is loaded.model.embed.weight
    assert (loaded.source, loaded.remarks) == (source, ())
    expected = 2 * state["embed.weight"][[0, 0, 0]] @ state["embed.weight"].T
    assert torch.allclose(loaded.run(loaded.inputs)["output"][0], expected)


@pytest.mark.parametrize("factory", ["make", "make_meta"])
def test_one_name_of_a_tied_weight_is_enough(factory):
    state = make_state()
    del state["head.weight"]
    write_safetensors("weights.safetensors", state)
    loaded = load_source("weights.safetensors", plan(factory))
    assert torch.equal(loaded.model.head.weight, state["embed.weight"])


@pytest.mark.parametrize("factory", ["make", "make_meta"])
def test_two_values_for_a_tied_weight_are_refused(factory):
    state = make_state() | {"head.weight": torch.zeros(7, 4)}
    with pytest.raises(
        UsageError, match=r"embed\.weight and head\.weight differ; the model has them"
    ):
        load_source(save("pt", state), plan(factory))


@pytest.mark.parametrize("form", FORMS)
def test_everything_that_does_not_fit_is_named_at_once(form):
    state = make_state()
    state["embed.weight"] = torch.zeros(8, 4)
    state["steps"] = torch.tensor(9.0)
    state["extra.weight"] = state.pop("scale")
    with pytest.raises(UsageError) as caught:
        load_source(save(form, state), plan("make_untied"))
    message = str(caught.value)
    assert f"does not fit the Tied that {FACTORY}:make_untied builds" in message
    assert "missing 1: scale" in message
    assert "unexpected 1: extra.weight" in message
    assert "misshapen 2: " in message
    assert "embed.weight float32[8, 4] in the file, float32[7, 4] in the model" in message
    assert "steps float32[] in the file, int64[] in the model" in message


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefix_of_a_wrapper_is_taken_off_and_said(prefix):
    state = make_state()
    torch.save({prefix + name: tensor for name, tensor in state.items()}, "weights.pt")
    loaded = load_source("weights.pt", plan())
    assert torch.equal(loaded.model.scale, state["scale"])
    assert loaded.remarks == (f"the names in weights.pt begin with {prefix}, which was taken off",)


def test_prefix_is_not_taken_off_to_make_some_fit():
    state = {f"module.{name}": tensor for name, tensor in make_state().items()}
    torch.save(state | {"other.weight": torch.ones(1)}, "weights.pt")
    with pytest.raises(UsageError, match=r"missing 4: .*\n  unexpected 5: module\.embed\.weight"):
        load_source("weights.pt", plan())


def test_state_dict_in_a_training_checkpoint_is_found_and_said():
    optimizer = {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"model": make_state(), "optimizer": optimizer, "epoch": 3}, "weights.pt")
    loaded = load_source("weights.pt", plan())
    assert loaded.remarks == ("the weights are those under 'model' in weights.pt",)


def test_several_state_dicts_are_not_chosen_from():
    torch.save({"model": make_state(), "ema": make_state()}, "weights.pt")
    with pytest.raises(UsageError, match="holds 2 state dicts, ema, model: save the one to export"):
        load_source("weights.pt", plan())


@pytest.mark.parametrize("content", [[torch.ones(1)], {"epoch": 3}, {}, torch.ones(3)])
def test_file_without_a_state_dict_is_refused(content):
    torch.save(content, "weights.pt")
    with pytest.raises(UsageError, match=r"weights\.pt holds a .*; expected a dict from names"):
        load_source("weights.pt", plan())


def test_objects_beside_the_weights_need_trust():
    torch.save({"model": make_state(), "args": Namespace(lr=0.1)}, "weights.pt")
    with pytest.raises(UsageError, match="unpickling runs code: pass --trust"):
        load_source("weights.pt", plan())
    assert load_source("weights.pt", plan(trust=True)).model.steps == 9


def test_whole_module_needs_no_factory():
    torch.save(torch.nn.Linear(3, 2), "model.pt")
    with pytest.raises(UsageError, match=r"holds a whole Linear: leave out --factory"):
        load_source("model.pt", plan(trust=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("trust", [False, True])
def test_torchscript_is_refused(trust):
    traced = torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3))
    torch.jit.save(traced, "model.pt")
    with pytest.raises(UnsupportedModelError, match="TorchScript archive"):
        load_source("model.pt", plan(trust=trust))


@pytest.mark.parametrize("factory", ["make", "make_meta"])
def test_half_precision_weights_are_exact_in_a_float32_model(factory):
    state = make_state()
    half = {n: t.to(torch.bfloat16) if t.is_floating_point() else t for n, t in state.items()}
    torch.save(half, "weights.pt")
    loaded = load_source("weights.pt", plan(factory))
    assert torch.equal(loaded.model.embed.weight, half["embed.weight"].float())
    assert loaded.remarks == ()


def test_weights_that_the_model_rounds_are_said():
    torch.save(make_state(), "weights.pt")
    (remark,) = load_source("weights.pt", plan("make_half")).remarks
    assert remark.startswith("2 tensors of weights.pt were rounded to the model's own type")
    assert remark.endswith("embed.weight is torch.float32 there")


def test_buffer_left_on_the_meta_device_is_named():
    state = make_state()
    del state["scale"]
    torch.save(state, "weights.pt")
    with pytest.raises(UsageError, match="left scale on the meta device"):
        load_source("weights.pt", plan("make_meta_with_temporary_buffer"))


def test_quantized_tensor_is_refused_by_name():
    state = make_state() | {"scale": torch.ones(3).to(torch.float8_e4m3fn)}
    with pytest.raises(
        UnsupportedModelError, match=r"scale is F8_E4M3: quantized weights are read"
    ):
        load_source(save("safetensors", state), plan())


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("make_weights", r"must return a module, .*; found dict"),
        ("make_error", r"make_error\(\) raised LookupError: no such size"),
        ("absent", "has no attribute 'absent'"),
    ],
)
def test_factory_that_builds_no_model_is_refused(factory, message):
    torch.save(make_state(), "weights.pt")
    with pytest.raises(UsageError, match=message):
        load_source("weights.pt", plan(factory))


def test_factory_of_another_form_is_refused():
    torch.save(make_state(), "weights.pt")
    wrong = BuildPlan(output=Path("unused"), factory="make")
    with pytest.raises(UsageError, match="--factory make: expected MODULE:CALLABLE"):
        load_source("weights.pt", wrong)


@pytest.mark.parametrize("source", ["absent.pt", "absent", f"{FACTORY}:make"])
def test_factory_needs_weights(source):
    with pytest.raises(UsageError, match=r"does not exist: --factory needs a file or folder"):
        load_source(source, plan())


def test_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty is a folder without \.safetensors"):
        load_source("empty", plan())


def test_folder_with_files_that_nothing_binds_is_refused(tmp_path):
    for name in ("a", "b"):
        write_safetensors(tmp_path / f"{name}.safetensors", make_state())
    with pytest.raises(UsageError, match=r"2 safetensors files without .*: a\.safetensors, b\."):
        load_source(str(tmp_path), plan())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"scale": "../weights.safetensors"},
            r"names '\.\./weights\.safetensors', which is no file",
        ),
        ({"scale": "/etc/hostname"}, "which is no file beside it"),
        ({"scale": 3}, "names 3, which is no file beside it"),
        ({"scale": "part-7.safetensors"}, r"names part-7\.safetensors, which is not there"),
        (
            {"bias": "part-1.safetensors"},
            r"says that bias is in part-1\.safetensors, which does not",
        ),
    ],
)
def test_index_that_promises_something_else_is_refused(tmp_path, changes, message):
    write_safetensors(tmp_path.parent / "weights.safetensors", make_state())
    write_shards(tmp_path, make_state(), **changes)
    with pytest.raises(UsageError, match=message):
        load_source("model.safetensors.index.json", plan())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}'])
def test_malformed_index_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UsageError, match=r"model\.safetensors\.index\.json (is no|has no)"):
        load_source("model.safetensors.index.json", plan())


@pytest.mark.parametrize("keep", [0, 4, 40, -4])
def test_truncated_safetensors_file_is_refused(tmp_path, keep):
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, make_state())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UsageError, match=r"weights\.safetensors is not a whole safetensors file"):
        load_source("weights.safetensors", plan())


def test_only_headers_are_read_until_a_tensor_is_needed(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, make_state())
    opened = open_checkpoint(path)
    assert {n: (t.dtype, t.shape, t.torch_dtype) for n, t in opened.items()} == {
        "embed.weight": ("F32", (7, 4), torch.float32),
        "head.weight": ("F32", (7, 4), torch.float32),
        "scale": ("F32", (3,), torch.float32),
        "steps": ("I64", (), torch.int64),
    }
    assert torch.equal(opened["scale"].read(), make_state()["scale"])
