"""The command line as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from moe_export.cli.console import shorten_path
from moe_export.cli.main import main

ROOT = Path(__file__).resolve().parents[2]

MODELS = """
import torch
from torch import nn
from tests.recognize.layers import GateModuleStyle, H
from tests.zoo.refused import DropoutAlways

def good():
    torch.manual_seed(0)
    return GateModuleStyle(), torch.randn(5, H)

def refused():
    return DropoutAlways(), torch.randn(5, H)

def without_example():
    return GateModuleStyle()
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a module of models, and a bundle of the good one."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "cli_models.py").write_text(MODELS)
    np.save(folder / "one.npy", np.zeros(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        result = CliRunner().invoke(main, ["build", "cli_models:good", "-o", "bundle"])
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def invoke(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(str(workspace))
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def test_build_reports_layers_and_parity(invoke):
    result = invoke("build", "cli_models:good", "-o", "again", "-q")
    assert result.exit_code == 0
    assert "module list" in result.stdout
    assert "softmax top-2" in result.stdout
    assert "parity passed" in result.stdout
    assert result.stderr == ""


def test_progress_goes_to_stderr(invoke):
    result = invoke("build", "cli_models:good", "-o", "third")
    for stage in ("load", "recognize", "capture", "lower", "optimize", "pack", "verify", "package"):
        assert stage in result.stderr
    assert "peak" not in result.stdout


def test_json_is_the_only_thing_on_stdout(invoke):
    result = invoke("inspect", "bundle", "--json")
    assert json.loads(result.stdout)["manifest"]["parity"]["status"] == "passed"
    result = invoke("inspect", "cli_models:good", "--json")
    assert json.loads(result.stdout)["layers"][0]["kind"] == "module list"


def test_inspect_a_bundle_for_people(invoke):
    result = invoke("inspect", "bundle")
    assert result.exit_code == 0
    assert "input   x: tensor(float) [batch, 24]" in result.stdout
    assert "parity passed" in result.stdout


def test_run_uses_the_example_and_writes_outputs(invoke, workspace):
    result = invoke("run", "bundle", "--outputs", "y.npz")
    assert result.exit_code == 0, result.output
    expected = np.load(workspace / "bundle" / "example" / "expected.npz")["output"]
    assert np.abs(np.load(workspace / "y.npz")["output"] - expected).max() < 1e-5


def test_run_names_a_wrong_input(invoke, workspace):
    np.savez(workspace / "bad.npz", x=np.zeros((3, 7), np.float32))
    result = invoke("run", "bundle", "--inputs", "bad.npz")
    assert result.exit_code == 2
    assert "input x must be ['batch', 24]; found [3, 7]" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["build", "cli_models:refused", "-o", "new"], 3, "gives two answers"),
        (["build", "cli_models:without_example", "-o", "new"], 2, "--input x=2,16,64"),
        (["build", "cli_models:good", "-o", "bundle"], 2, "pass --overwrite"),
        (["build", "nowhere.pt", "-o", "new"], 2, "nowhere.pt does not exist"),
        (["build", "cli_models:good", "-o", "new", "--input", "x"], 2, "expected NAME="),
        (["build", "cli_models:good", "-o", "new", "--dynamic", "x"], 2, "expected NAME.AXIS"),
        (["build", "cli_models:good", "-o", "new", "--input", "x=0,24"], 2, "at least 1"),
        (["build", "cli_models:good", "-o", "new", "--input", "x=5,23"], 2, "do not fit"),
        (["run", "bundle", "--inputs", "one.npy"], 2, "one unnamed array"),
        (["run", "nowhere"], 2, "is not a bundle"),
        (["inspect", "cli_models"], 2, "does not exist"),
    ],
)
def test_errors_end_with_their_code_and_lose_nothing(invoke, workspace, arguments, code, text):
    before = sorted(p.name for p in workspace.iterdir())
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    assert text in result.stderr.replace("\n", " ")
    assert sorted(p.name for p in workspace.iterdir()) == before


def test_error_as_json(invoke):
    result = invoke("build", "cli_models:refused", "-o", "new", "--json", "-q")
    error = json.loads(result.stdout)["error"]
    assert (error["kind"], error["exit_code"]) == ("UnsupportedModelError", 3)


def test_config_file_gives_defaults_and_the_command_line_wins(invoke, workspace):
    (workspace / "moe.toml").write_text('output = "configured"\nseed = 3\n')
    result = invoke("build", "cli_models:good", "--config", "moe.toml", "-q")
    assert result.exit_code == 0, result.output
    assert (workspace / "configured" / "manifest.json").is_file()
    (workspace / "moe.toml").write_text("sed = 3\n")
    result = invoke("build", "cli_models:good", "-o", "x", "--config", "moe.toml")
    assert (result.exit_code, "no option sed" in result.stderr) == (2, True)


def test_doctor(invoke):
    result = invoke("doctor", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["library"]["works"]


def test_doctor_names_the_instruction_set(invoke, monkeypatch):
    monkeypatch.setenv("MOE_EXPORT_ISA", "baseline")
    assert "kernels for baseline" in invoke("doctor").output
    monkeypatch.setenv("MOE_EXPORT_ISA", "avx1024")
    result = invoke("doctor")
    assert result.exit_code == 4
    assert "MOE_EXPORT_ISA names no instruction set" in result.output


def test_families(invoke):
    result = invoke("families")
    assert result.exit_code == 0
    assert "MixtralForCausalLM" in result.stdout


def test_help_has_examples(invoke):
    for command in ("build", "inspect", "run", "doctor", "families"):
        result = invoke(command, "--help")
        assert result.exit_code == 0
        assert "Example: moe-export" in result.stdout


def test_a_bundle_runs_where_torch_cannot_be_imported(workspace):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from moe_export.cli.main import main\n"
        "main(['run', 'bundle'], standalone_mode=False)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=workspace, check=True)
    assert Path(workspace / "bundle").is_dir()


def names_in(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != "__pycache__")


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("previous", ["load", "lower"])
def test_interrupted_build_leaves_nothing(workspace, signal_number, previous):
    """A stage is reported when it ends: then the next one runs."""
    before = names_in(workspace)
    command = [sys.executable, "-m", "moe_export", "build", "cli_models:good", "-o", "killed"]
    environment = {**os.environ, "PYTHONPATH": f"{workspace}{os.pathsep}{ROOT}"}
    with subprocess.Popen(
        command, cwd=workspace, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if line.startswith(previous):
                process.send_signal(signal_number)
                break
        text = process.stderr.read()
    assert process.returncode == 130, text
    assert "interrupted: nothing was written" in text
    assert names_in(workspace) == before


def test_long_paths_keep_their_end():
    short = shorten_path("model.layers.10.block_sparse_moe.experts")
    assert short.startswith("…")
    assert short.endswith("block_sparse_moe.experts")
    assert shorten_path("") == "<root>"
