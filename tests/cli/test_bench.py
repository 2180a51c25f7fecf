"""``bench`` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import moe_export
from moe_export.benchmark import timing
from moe_export.cli.main import main

SOURCE = "tests.cli.models:two_layers"
QUICK = ("--rounds", "1", "--threads", "1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Takes ``x [batch, sequence, 64]``."""
    output = tmp_path_factory.mktemp("bench") / "bundle"
    result = CliRunner().invoke(main, ["build", SOURCE, "-o", str(output), "-q"])
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr(timing, "_REST_S", 0.0)
    monkeypatch.setattr(timing, "_TURN_RUNS", 3)


def invoke(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_prints_runs_and_layers(bundle):
    result = invoke(bundle, "--tokens", "1,40", *QUICK)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if line]
    assert {"p50", "p90", "p99", "tokens/s"} <= set(rows[0])
    assert [" ".join(row[:2]) for row in rows[1:3]] == ["1 token", "40 tokens"]
    layers = [row for row in rows if row[0] in ("0", "1") and row[1] != "token"]
    assert len(layers) == 4  # two layers in two kinds of run
    assert all(row[2].endswith("%") and row[-1].endswith("%") for row in layers)
    assert "limits, measured between the runs: 1 threads" in result.stdout


def test_json_has_every_number(bundle):
    result = invoke(bundle, "--tokens", "40", "--json", *QUICK)
    values = json.loads(result.stdout)
    (case,) = values["cases"]
    assert case["tokens"] == 40
    assert case["tokens_per_second"] == pytest.approx(40 / case["latency"]["p50"])
    assert case["latency"]["runs"] == 3
    assert case["latency"]["p50"] <= case["latency"]["p99"]
    assert case["eager"] is None
    assert values["verified"] is True
    assert values["read_bandwidth"] > 0
    assert values["rates"]["float32"] > 0
    for layer in case["layers"]:
        assert layer["experts_hit"] > 2
        assert layer["share_of_limit"] > 0
        assert layer["limited_by"] in ("read", "arithmetic")


def test_eager_runs_in_turns_and_agrees(bundle):
    values = json.loads(
        invoke(bundle, "--tokens", "5", "--against", SOURCE, "--json", *QUICK).stdout
    )
    (case,) = values["cases"]
    assert case["eager"]["runs"] == 3
    assert case["eager_over_bundle"] == pytest.approx(case["eager"]["p50"] / case["latency"]["p50"])
    assert case["difference"] < 1e-4
    assert "torch" in values["machine"]


def test_another_source_with_the_same_inputs_is_told(bundle):
    other = "tests.benchmark.other_source:make_model"
    result = invoke(bundle, "--tokens", "5", "--against", other, *QUICK)
    assert result.exit_code == 0, result.output
    assert f"is {other} what the bundle was built from?" in " ".join(result.stdout.split())


def test_another_source_with_other_inputs_is_refused(bundle):
    result = invoke(
        bundle, "--tokens", "5", "--against", "tests.benchmark.other_source:with_more_inputs"
    )
    assert result.exit_code == 2
    assert "Is it the bundle's source?" in result.stderr
    assert "extra" in result.stderr


def test_given_inputs_are_run(bundle, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, input=np.random.default_rng(0).standard_normal((2, 7, 64)).astype(np.float32))
    result = invoke(bundle, "--inputs", path, "--json", *QUICK)
    (case,) = json.loads(result.stdout)["cases"]
    assert (case["name"], case["tokens"]) == ("x.npz", 14)


def test_unverified_bundle_is_said(digits, tmp_path):
    moe_export.build(*digits, output=tmp_path / "bundle", verify=False)
    result = invoke(tmp_path / "bundle", "--tokens", "1", *QUICK)
    assert result.exit_code == 0, result.output
    assert "is not verified" in result.stderr


def test_portable_bundle_runs_on_the_same_kernels(digits, tmp_path):
    moe_export.build(*digits, output=tmp_path / "bundle", target="portable", verify=False)
    values = json.loads(invoke(tmp_path / "bundle", "--tokens", "4", "--json", *QUICK).stdout)
    assert [layer["path"] for layer in values["cases"][0]["layers"]] == ["layers.0", "layers.1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tokens", "x"), "expected whole numbers"),
        (("--tokens", "0"), "expected whole numbers"),
        (("--tokens", "1", "--inputs", "x.npz"), "leave out --tokens"),
        (("--inputs", "nowhere.npz"), "not a readable .npz"),
        (("--factory", "a:b"), "--against"),
        (("--against", "nowhere.pt"), "does not exist"),
    ],
)
def test_wrong_usage_is_said(bundle, arguments, said):
    result = invoke(bundle, *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_folder_that_is_no_bundle_is_refused(tmp_path):
    result = invoke(tmp_path)
    assert result.exit_code == 2
    assert "is not a bundle" in result.stderr


def test_static_axes_refuse_other_numbers(digits, tmp_path):
    output = tmp_path / "bundle"
    from moe_export.plan import AxisSpec

    moe_export.build(*digits, output=output, static=(AxisSpec("images", 0),), verify=False)
    result = invoke(output, "--tokens", "1,16")
    assert result.exit_code == 2
    assert "--tokens 1" in result.stderr
    assert "has 6 tokens" in result.stderr
    assert invoke(output, "--tokens", "6", *QUICK).exit_code == 0


def test_bench_needs_no_torch(bundle):
    code = (
        "import sys; sys.modules['torch'] = None; from moe_export.cli.main import main; "
        f"main(['bench', {str(bundle)!r}, '--tokens', '2', '--rounds', '1'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 tokens" in done.stdout


def test_without_onnx_ir_layers_are_timed_and_the_rest_is_said(bundle):
    code = (
        "import sys; sys.modules['onnx_ir'] = None; from moe_export.cli.main import main; "
        f"main(['bench', {str(bundle)!r}, '--tokens', '2', '--rounds', '1', '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert "pip install onnx-ir" in values["remarks"][0]
    (case,) = values["cases"]
    assert all(layer["seconds"] > 0 for layer in case["layers"])
    assert {layer["share_of_limit"] for layer in case["layers"]} == {None}
