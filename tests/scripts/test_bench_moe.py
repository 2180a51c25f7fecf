"""What the benchmark times computes the layer: a fast wrong contender would be no peer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

from bench_moe import choose_contenders
from moe_bench import ggml_moe, torch_moe
from moe_bench.contenders import CONTENDERS
from moe_bench.layers import LAYERS, Layer, draw_weights
from moe_bench.routing import Refused, draw_call, exact
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
# Of the largest value. Four bits round to a fifteenth of a block's range, and products add up.
BOUNDS = {"fp32": 2e-6, "bf16": 2e-2, "int8": 5e-2, "int4": 0.4}
SMALL = (LAYERS["tiny"], Layer("ungated", 256, 128, 8, 1, "relu", gated=False))


@pytest.fixture(scope="module", params=SMALL, ids=lambda layer: layer.name)
def weights(request, tmp_path_factory):
    return draw_weights(request.param, tmp_path_factory.mktemp(request.param.name))


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda c: f"{c.name} {c.width}")
def test_contender_computes_the_layer(contender, weights):
    if not contender.is_installed:
        pytest.skip(f"needs {contender.package}: pip install '.[bench]'")
    bind = contender.prepare(weights)
    for tokens in (1, 300):  # more rows than bf16 can count
        call = draw_call(weights.layer, tokens, seed=tokens)
        expected = exact(weights, call)
        error = np.abs(bind(call)() - expected).max() / np.abs(expected).max()
        assert error <= BOUNDS[contender.width]


def test_ggml_refuses_rows_that_are_no_whole_blocks(tmp_path):
    pytest.importorskip("ggml", reason="needs ggml-python: pip install '.[bench]'")
    odd = draw_weights(Layer("odd", 40, 32, 2, 1), tmp_path)
    with pytest.raises(Refused, match="Q8_0 takes rows of whole blocks of 32"):
        ggml_moe.preparer("Q8_0")(odd)


def test_batched_mm_refuses_to_gather_more_than_fits(weights, monkeypatch):
    monkeypatch.setattr(torch_moe, "_GATHERED_MAX", 1e6)
    bind = torch_moe.preparer("batched_mm", "float32")(weights)
    bind(draw_call(weights.layer, 1, seed=0))
    with pytest.raises(Refused, match=r"would gather .* GB of weights"):
        bind(draw_call(weights.layer, 9, seed=0))


def test_contender_that_is_not_installed_is_left_out_by_name(monkeypatch, capsys):
    monkeypatch.setattr("moe_bench.contenders.find_spec", lambda name: None)
    names = {contender.name for contender in choose_contenders("OpenVINO", ["fp32"], Console())}
    assert names == set()
    assert "pip install openvino" in capsys.readouterr().out


@pytest.mark.parametrize("skewed", [False, True])
def test_routing_has_distinct_experts_and_weights_that_add_up(skewed):
    layer = Layer("many", 8, 8, 64, 6)
    call = draw_call(layer, 500, seed=3, skewed=skewed)
    assert all(len(set(row)) == layer.top_k for row in call.expert_ids.tolist())
    np.testing.assert_allclose(call.expert_weights.sum(axis=1), 1, rtol=1e-5)
    counts = np.bincount(call.expert_ids.ravel(), minlength=64)
    assert (counts.max() > 4 * counts.mean()) == skewed


def test_results_are_kept_with_the_machine(tmp_path):
    """The command as a user types it."""
    path = tmp_path / "results.json"
    command = [sys.executable, str(ROOT / "scripts" / "bench_moe.py"), "tiny", "--tokens", "1"]
    command += ["--rounds", "1", "--only", "moe-export", "--weights", "fp32,int4"]
    command += ["--json", str(path)]
    subprocess.run([*command, "--folder", str(tmp_path)], check=True, timeout=300)
    kept = json.loads(path.read_text())
    assert kept["machine"]["threads"] == "2"
    widths = {result["width"] for result in kept["results"]}
    assert widths == {"fp32", "int4"}
    assert all(result["layer"] == "tiny" and result["ours"] for result in kept["results"])
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
