"""Faults that a prompt alone does not show are found by comparing steps."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress
from moe_export.runners.library import ort_library_path
from moe_export.runners.onnxruntime import OnnxRuntimeRunner
from moe_export.sources.source import load_module
from moe_export.verify import steps
from moe_export.verify.judge import Judge
from moe_export.verify.steps import StepCase, compare_steps, make_sweep, step_cases
from tests.families.all_families import make_named_model

PLAN = BuildPlan(output=Path("unused"), with_past=True)


@pytest.fixture
def loaded(exported):
    return load_module(exported.model, None, PLAN, source="test")


def compare(exported, loaded, damage, folder):
    """The report of the exported graph after ``damage``."""
    model = ir.load(exported.bundle.folder / "model.onnx")
    damage(model)
    shutil.copy(exported.bundle.folder / "model.onnx.data", folder)
    ir.save(model, folder / "model.onnx")
    runner = OnnxRuntimeRunner(folder / "model.onnx", ort_library_path())
    judge, progress = Judge(()), SilentProgress()
    compare_steps(loaded, (), runner, judge, PLAN, progress)
    return judge.report(progress)


def leave(model):
    """No fault."""


def exchange_caches(model):
    """Each layer goes on from the other's keys."""
    first, second = (
        next(v for v in model.graph.outputs if v.name == f"present.{i}.key") for i in (0, 1)
    )
    first.name, second.name = second.name, first.name


def widen_window(model):
    """The window is one token wider than eager's."""
    widths = [
        node.inputs[1]
        for node in model.graph
        if node.op_type == "Sub" and node.inputs[1].const_value is not None
        if node.inputs[1].const_value.numpy().tolist() in (8, [8])
    ]
    assert len(widths) == 1
    value = widths[0].const_value.numpy()
    widths[0].const_value = ir.tensor(np.full_like(value, 9), name=widths[0].name)


def test_the_graph_as_it_is_passes(exported, loaded, tmp_path):
    report = compare(exported, loaded, leave, tmp_path)
    assert report.passed
    assert len(report.cases) == len(step_cases(loaded)) == 6


def test_an_exchanged_cache_is_found(exported, loaded, tmp_path):
    report = compare(exported, loaded, exchange_caches, tmp_path)
    assert any("logits differs" in failure for failure in report.failures)
    assert any("cache differs" in failure for failure in report.failures)


def test_a_wider_window_is_found_by_the_cases_that_leave_it(exported, loaded, tmp_path):
    report = compare(exported, loaded, widen_window, tmp_path)
    wrong = {case.name for case in report.cases if case.errors["logits"] > 1e-3}
    assert "batch 2, 11+2*1+2 tokens" in wrong
    assert "batch 1, 12*1 tokens" in wrong
    assert not report.passed


def test_a_window_that_is_too_wide_to_cross_is_remarked(exported, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "_WIDEST_WINDOW", 4)
    progress = SilentProgress()
    runner = OnnxRuntimeRunner(exported.bundle.folder / "model.onnx", ort_library_path())
    compare_steps(loaded, (), runner, Judge(()), PLAN, progress)
    assert "window of 8 tokens" in progress.remarks[-1]
    assert len(step_cases(loaded)) == 4


def test_cases_without_a_window_begin_with_one_token_and_with_many():
    loaded = load_module(make_named_model("qwen3_moe"), None, PLAN, source="test")
    names = [case.name for case in step_cases(loaded)]
    assert names == [
        "batch 1, 12*1 tokens",
        "batch 2, 7+3*1+5+1 tokens",
        "batch 3, 5+2*1+4+1 tokens, padded left",
        "batch 2, 64+2*1+3 tokens",
    ]
    assert StepCase(1, (2, 2), padded=True).name == "batch 1, 2*2 tokens, padded left"


def test_the_sweep_of_a_model_with_a_cache_has_an_empty_one(exported, loaded):
    from moe_export.verify.stage import input_shapes

    sweep = make_sweep(loaded, input_shapes(loaded, exported.bundle.runner), PLAN)
    for shape in sweep.shapes():
        inputs = sweep.draw(shape).inputs
        outputs = exported.bundle.run(inputs)
        assert inputs["past_key_values.0.key"].shape[2] == 0
        assert outputs["logits"].shape[:2] == inputs["input_ids"].shape
