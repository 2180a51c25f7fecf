"""``build --weights``: what it prints and records, and what it refuses."""

from __future__ import annotations

import json
import re
import warnings

import pytest
from click.testing import CliRunner
from rich.console import Console

import moe_export
from moe_export.cli.main import main
from moe_export.cli.quantization_table import describe_storage, draw_quantization

MODEL = "tests.cli.models:two_layers"


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def test_a_build_shows_and_records_what_smaller_weights_cost(invoke):
    options = ("--weights", "int4", "--block-size", "32", "--max-error", "0.5")
    built = invoke("build", MODEL, "-o", "b", "-q", *options)
    assert built.exit_code == 0, built.output
    for path in ("0", "1"):
        assert re.search(rf"^{path}\s+int4/32\s", built.stdout, re.MULTILINE), built.stdout
    assert "rounded weights: outputs differ from eager's by" in built.stdout
    shown = invoke("inspect", "b")
    assert "int4/32" in shown.stdout
    assert "kept in float32 for an error of at most 0.5: none" in shown.stdout
    found = json.loads(invoke("inspect", "b", "--json").stdout)
    summary = found["manifest"]["parity"]["quantization"]
    assert (summary["max_error"], summary["kept"]) == (0.5, [])
    assert 0 < summary["rms"] <= 0.5
    for layer in found["manifest"]["layers"]:
        assert layer["weights"]["weight_type"] == "int4"
        assert layer["weights"]["layout"] == "cpu_v1"
    assert [layer["path"] for layer in found["parity"]["quantization"]["layers"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert moe_export.load("b").verified


def test_weights_that_were_not_compared_are_told(capsys):
    weights = {"weight_type": "int4", "block_size": 128, "zero_points": False}
    layers = [{"weights": weights}, {"weights": {**weights, "weight_type": "fp32"}}, {}]
    layers[1]["weights"]["block_size"] = 0
    draw_quantization(Console(width=80), layers, {})
    assert capsys.readouterr().out == "weights of 1 of 3 layers: int4/128, not compared\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", "int4", "--target", "portable"), "--weights int4 needs --target cpu"),
        (("--zero-points",), "--zero-points belongs to --weights int4"),
        (("--weights", "int4", "--max-error", "1", "--no-verify"), "needs the comparison"),
    ],
)
def test_options_that_do_not_go_together_end_with_2_before_anything_is_loaded(
    invoke, options, message
):
    result = invoke("build", "nowhere:nothing", "-o", "b", *options)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"weight_type": "bf16", "block_size": 0, "zero_points": False}, "bf16"),
        ({"weight_type": "int4", "block_size": 64, "zero_points": True}, "int4/64 + zero"),
    ],
)
def test_storage_in_words(stored, words):
    assert describe_storage(stored) == words
