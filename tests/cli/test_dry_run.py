"""``--dry-run`` shows every layer and an estimate, and writes nothing."""

from __future__ import annotations

import io
import json

import pytest
from click.testing import CliRunner
from rich.console import Console

from moe_export.cli.dry_run_table import draw_dry_run
from moe_export.cli.main import main
from moe_export.runners.library import PLUGIN_LIBRARY_VARIABLE

MODELS = "tests.cli.models:"


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def dry_run(invoke, name, *arguments):
    return invoke("build", MODELS + name, "--dry-run", "-q", *arguments)


def table(text):
    """Rows of the table by the first cell, with cells that go on below joined."""
    lines = text.split("proof: ")[0].splitlines()
    starts = [lines[0].index(c) for c in ("MoE layer", "found as", "experts", "proof", "router")]
    rows = {}
    for line in lines[1:]:
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        if cells[0]:
            path = cells[0]
            rows[path] = cells[1:]
        else:
            rows[path] = [" ".join(c).strip() for c in zip(rows[path], cells[1:], strict=True)]
    return rows


def test_table_and_estimate(invoke, tmp_path):
    result = dry_run(invoke, "two_layers")
    assert result.exit_code == 0, result.output
    found, experts, proof, router = table(result.stdout)["1"]
    assert (found, experts, router) == (
        "module list",
        "8 silu, gated",
        "softmax top-2, renormalized",
    )
    assert "8/8" in proof
    for text in ("estimate of a build", "disk ", "memory ", "time ", "measured rate"):
        assert text in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []


def test_unfused_experts_and_routers(invoke):
    result = dry_run(invoke, "inner_norm_experts")
    assert table(result.stdout)["<root>"][1].startswith("6 addmm, gelu")
    result = dry_run(invoke, "gshard_top2")
    assert table(result.stdout)["<root>"][3] == "standard operators"
    assert "router of <root> stays standard operators: tokens depend on each other" in result.stdout


def test_refused_layers(invoke, tmp_path):
    result = dry_run(invoke, "some_refused")
    assert result.exit_code == 3
    rows = table(result.stdout)
    assert {path: cells[0] for path, cells in rows.items()} == {
        "0": "module list", "1": "refused", "2": "module list", "3": "refused"
    }  # fmt: skip
    assert "refused: 1 (DropoutAlways): eager gives two answers" in result.stdout
    assert "eager ran only experts 0, 1 of 6 in 3.experts" in result.stdout
    assert "estimate" not in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_traced_around_its_layers(invoke, tmp_path):
    result = dry_run(invoke, "untraceable")
    assert result.exit_code == 3
    assert table(result.stdout)["layer"][0] == "module list"
    assert "refused: the model cannot be traced" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_layers_that_tensorrts_own_moe_layer_does_not_take(invoke, tmp_path, monkeypatch):
    (tmp_path / "plugins.so").touch()
    monkeypatch.setenv(PLUGIN_LIBRARY_VARIABLE, str(tmp_path / "plugins.so"))
    arguments = ["--target", "tensorrt", "--moe", "native"]
    result = dry_run(invoke, "inner_norm_experts", *arguments)
    assert result.exit_code == 3
    assert "<root>: its experts are no gated FFN" in " ".join(result.stdout.split())
    assert dry_run(invoke, "two_layers", *arguments).exit_code == 0


def test_refused_layers_as_json(invoke):
    result = dry_run(invoke, "some_refused", "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert not found["would_build"]
    assert [layer["status"] for layer in found["layers"]] == ["recognized", "refused"] * 2
    assert found["layers"][1]["module"] == "DropoutAlways"
    assert found["estimate"] is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("two_layers", ["--target", "cpu"]),
        ("two_layers", ["--weights", "int4", "--zero-points"]),
        ("top2_of_16", ["--target", "portable"]),
    ],
)
def test_estimated_size_is_that_of_the_bundle(invoke, tmp_path, name, options):
    result = dry_run(invoke, name, "--json", *options)
    assert result.exit_code == 0, result.output
    estimate = json.loads(result.stdout)["estimate"]
    built = invoke("build", MODELS + name, "-o", "bundle", "-q", "--no-verify", *options)
    assert built.exit_code == 0, built.output
    size_bytes = sum(p.stat().st_size for p in (tmp_path / "bundle").rglob("*") if p.is_file())
    assert estimate["size_bytes"] == pytest.approx(size_bytes, rel=0.1)
    assert estimate["total_s"] >= estimate["measured_s"] > 0
    assert estimate["peak_bytes"] > estimate["weights_bytes"]


def test_an_output_in_the_way_is_told(invoke, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").touch()
    result = dry_run(invoke, "two_layers", "-o", "b")
    assert (result.exit_code, "b exists" in result.stderr) == (2, True)


def test_a_build_needs_an_output(invoke):
    result = invoke("build", f"{MODELS}two_layers")
    assert (result.exit_code, "with -o" in result.stderr) == (2, True)


def test_long_paths_and_operators_stay_within_80_columns():
    layer = {
        "path": "model.language_model.layers.10.block_sparse_moe.experts",
        "status": "recognized",
        "kind": "experts hook",
        "experts": {"num_experts": 2048, "operators": "native_layer_norm, addmm, _softmax"},
        "proof": {"tokens": [1, 3], "experts_reached": 2048, "max_error": 1e-7},
        "router": "standard operators",
    }
    console = Console(width=200, file=io.StringIO())
    found = {"layers": [layer], "failure": None, "estimate": None}
    draw_dry_run(console, found)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("…sparse_moe.experts")
