"""What bench_model keeps and prints, and its small model through the quick contenders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_bench.contenders import _layer_of, bundle_entry, eager_entry
from model_bench.model import Sizes, exact_logits, rms_error, write_checkpoint
from model_bench.record import Result, read_results, readme_table, write_results

from moe_export.benchmark.cases import draw_cases
from moe_export.package.bundle import UnverifiedBundleWarning, load

pytest.importorskip("transformers")

TINY = Sizes(
    hidden_size=32,
    moe_intermediate_size=16,
    num_experts=4,
    num_experts_per_tok=2,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=96,
)


def result(contender, case, seconds, *, ours=False):
    return Result(case, 512, contender, ours, seconds, 5, 1e-6)


RESULTS = [
    result("moe-export fp32", "prefill 512", 0.2, ours=True),
    result("moe-export int4", "prefill 512", 0.1, ours=True),
    result("eager", "prefill 512", 0.5),
    result("moe-export fp32", "decode", 0.01, ours=True),
    result("moe-export int4", "decode", 0.005, ours=True),
]


def test_table_compares_with_our_first_bundle():
    lines = readme_table(RESULTS).splitlines()
    assert lines[0].startswith("| contender | prefill 512, ms | over ours | error | decode, ms |")
    assert lines[2] == "| moe-export fp32 | 200.0 | 1.00 | 1e-06 | 10.0 | 1.00 | 1e-06 |"
    assert lines[3] == "| moe-export int4 | 100.0 | 0.50 | 1e-06 | 5.0 | 0.50 | 1e-06 |"
    assert lines[4] == "| eager | 500.0 | 2.50 | 1e-06 | - | - | - |"


def test_results_are_kept_with_the_machine(tmp_path):
    write_results(tmp_path / "kept.json", TINY, RESULTS, 2)
    machine, results = read_results(tmp_path / "kept.json")
    assert results == RESULTS
    assert machine["threads"] == "2"
    assert machine["torch"] == torch.__version__


def test_error_is_relative_to_the_exact_values():
    exact = np.array([3.0, -4.0])
    assert rms_error(exact.astype(np.float32), exact) == 0
    assert rms_error(np.array([3.0, -4.5], np.float32), exact) == pytest.approx(0.1)


def test_states_of_openvino_are_told_apart_by_name():
    assert _layer_of("input.past_key_values.layers.12.values") == (12, 1)
    assert _layer_of("past_key_values.layers.0.keys") == (0, 0)
    with pytest.raises(ValueError, match="no layer's keys"):
        _layer_of("beam_idx")


@pytest.mark.filterwarnings("ignore:.*is not verified")
def test_bundle_and_eager_are_near_the_exact_logits(tmp_path):
    write_checkpoint(TINY, tmp_path / "checkpoint")
    ours = bundle_entry(tmp_path / "checkpoint", tmp_path / "bundle", "fp32", threads=1)
    with pytest.warns(UnverifiedBundleWarning):
        cases = draw_cases(load(tmp_path / "bundle", num_threads=1), (9,), seed=0)
    exact = exact_logits(tmp_path / "checkpoint", cases)
    for case in cases:
        for entry in (ours, eager_entry(tmp_path / "checkpoint")):
            contender = entry.load(case)
            for _ in range(2):  # the second run finds what the first found
                found = contender.prepare(case, 0)()["logits"]
                assert found.shape == exact[case.name].shape
                assert rms_error(found, exact[case.name]) < 1e-5
