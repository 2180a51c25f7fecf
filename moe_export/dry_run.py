"""``build --dry-run``: every stage up to the graph, and what a build would take."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from moe_export.capture.precision import source_dtype
from moe_export.capture.stage import capture
from moe_export.errors import ContractError, UnsupportedModelError
from moe_export.estimate import Estimate, estimate_build
from moe_export.lower.stage import LoweredModel, lower
from moe_export.optimize.stage import optimize
from moe_export.pack.native_moe import use_native_moe
from moe_export.pipeline import cache_names, recognize_layers
from moe_export.plan import BuildPlan
from moe_export.progress import Progress, SilentProgress
from moe_export.quantize.stage import quantize
from moe_export.recognize.stage import Recognition
from moe_export.refusals import explain_refusal
from moe_export.runners.library import find_libraries
from moe_export.sources.file_backed import weights_in_files
from moe_export.sources.model import LoadedModel
from moe_export.sources.source import load_source


@dataclass(frozen=True)
class DryRun:
    """What a build would find and take.

    Attributes:
        source: How the user named the model.
        target: The target of the build.
        layers: The MoE layers. Their ``status`` is ``recognized`` or ``refused``; the former are as
            the manifest would describe them, without a router where the model was not captured;
            the latter have ``path``, ``module`` and ``reason``.
        failure: Why the model cannot be exported although its layers were recognized.
        estimate: Size, memory and time of the build; None where it would fail.
        remarks: What there is to say besides.
    """

    source: str
    target: str
    layers: tuple[dict[str, Any], ...]
    failure: str | None = None
    estimate: Estimate | None = None
    remarks: tuple[str, ...] = ()

    @property
    def would_build(self) -> bool:
        """Whether a build would get as far as its comparison with eager."""
        return self.failure is None and all(la["status"] == "recognized" for la in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        estimate = self.estimate.to_json() if self.estimate else None
        return {**vars(self), "would_build": self.would_build, "estimate": estimate}


def dry_run_source(source: str, plan: BuildPlan, progress: Progress) -> DryRun:
    """Go through the stages of a build that write nothing.

    Args:
        source: What ``build`` takes.
        plan: What the build would be asked for.
        progress: Told of stages and remarks.

    Raises:
        UsageError: the source or an input is wrong.
        UnsupportedModelError: the model has no MoE layer, or cannot be loaded faithfully.
    """
    began = time.monotonic()
    progress.stage("load")
    with weights_in_files(plan.output.parent):
        loaded = load_source(source, plan)
        recognition = recognize_layers(loaded, progress, keep_going=True)
        if recognition.refusals:
            # It cannot be traced: a refused layer still depends on values.
            result = DryRun(source, plan.target, _describe(loaded, recognition))
        else:
            result = _export(loaded, recognition, plan, progress, began)
    return dataclasses.replace(result, remarks=tuple(progress.remarks))


def _export(
    loaded: LoadedModel, found: Recognition, plan: BuildPlan, progress: Progress, began: float
) -> DryRun:
    plan = plan.with_dtype(source_dtype(loaded))
    libraries = find_libraries(plan)
    try:
        lowered = _lower(loaded, found, plan, progress)
    except (UnsupportedModelError, ContractError) as error:
        return DryRun(loaded.source, plan.target, _describe(loaded, found), failure=str(error))
    elapsed_s = time.monotonic() - began
    progress.stage("estimate")
    estimate = estimate_build(loaded, lowered, plan, libraries, elapsed_s)
    layers = tuple({**layer.describe(), "status": "recognized"} for layer in lowered.layers)
    return DryRun(loaded.source, plan.target, layers, estimate=estimate)


def _lower(
    loaded: LoadedModel, found: Recognition, plan: BuildPlan, progress: Progress
) -> LoweredModel:
    progress.stage("capture")
    captured = capture(loaded, found.blocks, plan, progress)
    progress.stage("lower")
    lowered = lower(captured, plan.dtype or "fp32", cache_names(loaded))
    progress.stage("optimize")
    lowered = optimize(lowered, plan, progress)
    if plan.moe == "native":
        use_native_moe(quantize(lowered, plan, SilentProgress()).model)  # or refuses, as a build
    return lowered


def _describe(loaded: LoadedModel, recognition: Recognition) -> tuple[dict[str, Any], ...]:
    """Recognized and refused layers in the model's order."""
    layers: list[dict[str, Any]] = [
        {**block.describe(), "status": "recognized"} for block in recognition.blocks
    ]
    layers += [
        {
            "path": refusal.path,
            "module": type(loaded.model.get_submodule(refusal.path)).__name__,
            "status": "refused",
            "reason": explain_refusal(loaded.model, refusal),
        }
        for refusal in recognition.refusals
    ]
    order = [path for path, _ in loaded.model.named_modules()]
    return tuple(sorted(layers, key=lambda layer: order.index(layer["path"])))
