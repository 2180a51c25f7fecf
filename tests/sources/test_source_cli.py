"""Sources on the command line: what is printed, and the exit code of each failure."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from click.testing import CliRunner

from moe_export.cli.main import main

CODE = """
import torch
from torch import nn

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.up = nn.Parameter(torch.randn(4, 12, 8))
        self.down = nn.Parameter(torch.randn(4, 8, 12))

    def forward(self, x):
        weights, ids = self.router(x).softmax(-1).topk(2)
        y = torch.relu(torch.einsum("th,tkih->tki", x, self.up[ids]))
        return (weights[..., None] * torch.einsum("tki,tkhi->tkh", y, self.down[ids])).sum(1)

def make():
    return Layer(), torch.randn(5, 8)
"""
FACTORY = "factory_of_test_source_cli"


@pytest.fixture
def state(tmp_path, monkeypatch):
    """The state dict of what the factory in the current folder builds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / f"{FACTORY}.py").write_text(CODE)
    torch.manual_seed(0)
    yield __import__(FACTORY).Layer().state_dict()
    sys.modules.pop(FACTORY, None)


def run(*arguments):
    return CliRunner().invoke(main, ["build", *arguments, "-o", "bundle"])


def test_weights_are_exported_with_a_factory(tmp_path, state):
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, "weights.pt")
    result = run("weights.pt", "--factory", f"{FACTORY}:make", "--json")
    assert result.exit_code == 0, result.output
    manifest = json.loads(result.stdout)["manifest"]
    assert manifest["parity"]["status"] == "passed"
    assert manifest["source"]["name"] == "weights.pt"
    assert manifest["remarks"] == [
        "the names in weights.pt begin with module., which was taken off"
    ]


@pytest.mark.parametrize(
    ("source", "options", "code", "message"),
    [
        ("weights.pt", ["--factory", f"{FACTORY}:make"], 2, "missing 1: router.bias"),
        ("weights.pt", [], 2, "may hold pickled Python objects"),
        ("weights.pt", ["--trust"], 2, "pass --factory MODULE:CALLABLE"),
        ("absent.pt", ["--factory", f"{FACTORY}:make"], 2, "does not exist"),
        ("absent.safetensors", [], 2, "absent.safetensors does not exist"),
        ("gptq", [], 3, "is quantized by gptq"),
        ("model.gguf", [], 3, "GGUF"),
        ("org/absent", [], 4, "Pass a folder that has been downloaded"),
    ],
)
def test_failure_has_its_exit_code_and_leaves_nothing(
    tmp_path, monkeypatch, state, source, options, code, message
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    del state["router.bias"]
    torch.save(state if options else torch.nn.Linear(1, 1), "weights.pt")
    (tmp_path / "model.gguf").touch()
    (tmp_path / "gptq").mkdir()
    config = {"model_type": "mixtral", "quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "gptq" / "config.json").write_text(json.dumps(config))
    result = run(source, *options)
    assert result.exit_code == code
    assert message in result.output
    assert not (tmp_path / "bundle").exists()
