"""Stage 8: the sweep over shapes, layer by layer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from moe_export.errors import UnsupportedModelError
from moe_export.pack.model_file import PackedModel, write_probe
from moe_export.plan import BuildPlan
from moe_export.progress import Progress
from moe_export.runners.eager import EagerRunner
from moe_export.runners.onnxruntime import OnnxRuntimeRunner
from moe_export.sources.model import LoadedModel
from moe_export.sources.past import GenerativeModel
from moe_export.verify.cases import CaseShape, InputShape, Sweep
from moe_export.verify.experts_alone import compare_experts_alone
from moe_export.verify.judge import Judge, output_error
from moe_export.verify.report import ParityReport
from moe_export.verify.side_checks import compare_source_dtype, is_batch_coupled
from moe_export.verify.steps import compare_steps, make_sweep

# Draws of one case before its numbers are given up because of ties.
_MAX_DRAWS = 5


def verify(
    loaded: LoadedModel,
    packed: PackedModel,
    plan: BuildPlan,
    library: Path | None,
    progress: Progress,
) -> ParityReport:
    """Compare the written model with eager PyTorch.

    Args:
        loaded: The model, in float32, its layers unbound.
        packed: The written model.
        plan: Gives the seed and the ranges of the axes.
        library: The op library, or None to judge the bodies in standard operators.
        progress: Told of every case, and of experts that nothing reaches.
    """
    layers = packed.lowered.layers
    runner = _open_probe(packed, library)
    eager = EagerRunner(loaded.run, [layer.block for layer in layers])
    sweep = make_sweep(loaded, input_shapes(loaded, runner), plan)
    judge = Judge(layers, packed.lowered.telemetry)
    if isinstance(loaded, GenerativeModel):
        compare_steps(loaded, layers, runner, judge, plan, progress)
    for shape in progress.track(_shapes(loaded, sweep), "cases"):
        try:
            _run_case(shape, sweep, eager, runner, judge)
        except UnsupportedModelError as error:
            progress.remark(f"{shape.name}: left out, eager does not run on it ({error})")
    for layer in progress.track(layers, "layers"):
        alone = compare_experts_alone(packed, layer, library, plan.seed)
        if alone is not None:
            judge.add_alone(layer.path, alone)
    source_dtype, source_error = compare_source_dtype(loaded, sweep, runner, progress)
    return dataclasses.replace(
        judge.report(progress),
        batch_coupled=is_batch_coupled(sweep, runner),
        source_dtype=source_dtype,
        source_dtype_error=source_error,
    )


def _shapes(loaded: LoadedModel, sweep: Sweep) -> list[CaseShape]:
    """The sweep's cases; a model with a cache is compared step by step instead."""
    return [] if isinstance(loaded, GenerativeModel) else list(sweep.shapes())


def _open_probe(packed: PackedModel, library: Path | None) -> OnnxRuntimeRunner:
    """A session of the model with every layer's routing and result among its outputs."""
    layers = packed.lowered.layers
    values = [v for la in layers for v in (la.expert_ids, la.expert_weights, la.y)]
    probe = write_probe(packed, values, "probe.onnx")
    try:
        return OnnxRuntimeRunner(probe, library)
    finally:
        probe.unlink()


def input_shapes(loaded: LoadedModel, runner: OnnxRuntimeRunner) -> tuple[InputShape, ...]:
    """The inputs that a session takes, with the example's values."""
    ranges = loaded.integer_ranges
    return tuple(
        InputShape(s.name, s.shape, loaded.inputs[s.name].numpy(), ranges.get(s.name))
        for s in runner.inputs
    )


def _run_case(
    shape: CaseShape, sweep: Sweep, eager: EagerRunner, runner: OnnxRuntimeRunner, judge: Judge
) -> None:
    """Compare one case; draw it again while a tie routes a token otherwise than eager."""
    tied = 0
    for redrawn in range(_MAX_DRAWS):
        case = sweep.draw(shape)
        trace = eager.trace(case.inputs)
        found = runner.run(case.inputs)
        flipped = judge.compare_layers(case, trace, found)
        tied += flipped
        if flipped == 0 or redrawn == _MAX_DRAWS - 1:
            errors = {n: output_error(case, found[n], trace.outputs[n]) for n in trace.outputs}
            judge.add_case(case, errors, tied_tokens=tied, redrawn=redrawn, judged=flipped == 0)
            return
