""".pt2 files: programs of torch.export become modules again, and nothing runs without trust."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import moe_export
from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.plan import BuildPlan
from moe_export.sources.source import load_source

TRUST = BuildPlan(output=Path("unused"), trust=True)
BATCH = torch.export.Dim("batch", min=1, max=4096)


class Experts(nn.Module):
    """Every expert on every token, under weights that are zero for all but two of them."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(16, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(4)
        )

    def forward(self, x):
        weights, ids = self.router(x).softmax(-1).topk(2)
        # The size is what torch.export hands to the layer as a number.
        dense = torch.zeros(x.shape[0], 4).scatter(1, ids, weights)
        return sum(dense[:, i : i + 1] * e(x) for i, e in enumerate(self.experts))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.moe = Experts()
        self.register_buffer("offset", torch.full((16,), 0.5))

    def forward(self, x, scale=1.0, *, gain=None):
        y = torch.relu(self.first(x)) + self.offset
        y = y + scale * self.moe(y)
        return {"y": y if gain is None else y * gain}


def save(path, model, arguments, keywords=None, dynamic=None):
    program = torch.export.export(model.eval(), arguments, keywords, dynamic_shapes=dynamic)
    torch.export.save(program, path)
    return str(path)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def test_program_becomes_modules_with_the_names_of_the_original(tmp_path, model):
    example = torch.randn(5, 16)
    source = save(tmp_path / "m.pt2", model, (example,), dynamic={"x": {0: BATCH}})
    loaded = load_source(source, TRUST)
    assert {*dict(model.named_parameters())} == {*dict(loaded.model.named_parameters())}
    assert loaded.model.get_submodule("moe.experts.3.2").weight.shape == (16, 24)
    assert torch.equal(loaded.inputs["x"], example)
    for rows in (1, 5, 12):
        x = torch.randn(rows, 16)
        found = loaded.run({"x": x})
        assert list(found) == ["y"]
        assert torch.equal(found["y"], model(x)["y"])


def test_layer_of_a_program_runs_by_itself_on_other_sizes(tmp_path, model):
    source = save(tmp_path / "m.pt2", model, (torch.randn(5, 16),), dynamic={"x": {0: BATCH}})
    layer = load_source(source, TRUST).model.moe
    x = torch.randn(9, 16)
    assert torch.allclose(layer(x), model.moe(x), atol=1e-6)


def test_program_is_exported_with_its_experts_as_one_op(tmp_path, model):
    source = save(tmp_path / "m.pt2", model, (torch.randn(5, 16),), dynamic={"x": {0: BATCH}})
    loaded = load_source(source, TRUST)
    bundle = moe_export.build(loaded.model, loaded.inputs, output=tmp_path / "bundle")
    (layer,) = bundle.manifest.layers
    assert (layer["path"], layer["experts"]["num_experts"]) == ("moe", 4)
    assert bundle.manifest.parity["status"] == "passed"
    assert bundle.manifest.parity["cases"] > 1


def test_arguments_keep_their_names_and_constants_their_values(tmp_path, model):
    x, gain = torch.randn(5, 16), torch.full((16,), 3.0)
    source = save(tmp_path / "m.pt2", model, (x, 2.0), {"gain": gain})
    loaded = load_source(source, TRUST)
    assert set(loaded.inputs) == {"x", "gain"}
    assert torch.equal(loaded.run({"gain": gain, "x": x})["y"], model(x, 2.0, gain=gain)["y"])


def test_axis_that_was_fixed_while_exporting_is_checked(tmp_path, model):
    source = save(tmp_path / "m.pt2", model, (torch.randn(5, 16),))
    loaded = load_source(source, TRUST)
    with pytest.raises(UnsupportedModelError, match=r"x axis 0 was fixed at 5 by torch\.export"):
        loaded.run({"x": torch.randn(6, 16)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_program_in_half_precision_is_refused(tmp_path, dtype):
    source = save(
        tmp_path / "m.pt2", nn.Linear(16, 4).to(dtype), (torch.randn(5, 16, dtype=dtype),)
    )
    with pytest.raises(UnsupportedModelError, match=r"weight is b?float16, .*export model\.float"):
        load_source(source, TRUST)


def test_program_needs_trust(tmp_path, model):
    source = save(tmp_path / "m.pt2", model, (torch.randn(5, 16),))
    with pytest.raises(UsageError, match=r"loading a \.pt2 may run code .*: pass --trust"):
        load_source(source, BuildPlan(output=Path("unused")))


def write_attack(path, ran):
    """A program without a single pickle, in which a size is an expression that creates ``ran``."""
    save(path, nn.Linear(16, 4), (torch.randn(5, 16),), dynamic={"input": {0: BATCH}})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    attack = f"open('{ran}', 'w').close()"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            if name.endswith("/model.json"):
                text = re.sub(r'"expr_str": "[^"]*"', f'"expr_str": "{attack}"', content.decode())
                assert attack in text
                content = text.encode()
            archive.writestr(name, content)


@pytest.mark.parametrize("trust", [False, True])
def test_expression_in_a_program_runs_with_trust_alone(tmp_path, trust):
    path, ran = tmp_path / "m.pt2", tmp_path / "ran"
    write_attack(path, ran)
    with pytest.raises(UsageError):
        load_source(str(path), BuildPlan(output=Path("unused"), trust=trust))
    assert ran.exists() == trust


class TakesAPair(nn.Module):
    def forward(self, pair):
        return pair[0] + pair[1]


def test_program_that_takes_more_than_tensors_is_refused(tmp_path):
    pair = (torch.ones(2), torch.ones(2))
    source = save(tmp_path / "m.pt2", TakesAPair(), (pair,))
    with pytest.raises(
        UnsupportedModelError, match="takes tuple arguments; expected tensors alone"
    ):
        load_source(source, TRUST)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an archive"])
@pytest.mark.parametrize("trust", [False, True])
def test_file_of_another_kind_is_refused(tmp_path, content, trust):
    (tmp_path / "m.pt2").write_bytes(content)
    with pytest.raises(UsageError, match=r"m\.pt2 is not a file that torch\.export\.save wrote"):
        load_source(str(tmp_path / "m.pt2"), BuildPlan(output=Path("unused"), trust=trust))


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        (
            ["m/data/aotinductor/model/code.so"],
            UnsupportedModelError,
            "code that AOTInductor compiled",
        ),
        (["m/readme"], UsageError, "expected one program, .*; found none"),
        (
            ["m/models/a.json", "m/models/b.json"],
            UsageError,
            r"found models/a\.json, models/b\.json",
        ),
        (["m/models/model.json"], UsageError, "is no program that this version of torch reads"),
    ],
)
def test_archive_without_one_program_is_refused(tmp_path, entries, error, message):
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        for name in entries:
            archive.writestr(name, "{}")
    with pytest.raises(error, match=message):
        load_source(str(tmp_path / "m.pt2"), TRUST)


def test_truncated_program_is_refused(tmp_path, model):
    path = tmp_path / "m.pt2"
    save(path, model, (torch.randn(5, 16),))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UsageError, match=r"m\.pt2"):
        load_source(str(path), TRUST)
