"""Measure what rounding experts' weights costs, apart from what lowering the model costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_export.errors import UnsupportedModelError
from moe_export.lower.stage import LoweredLayer
from moe_export.pack.model_file import PackedModel, write_experts, write_probe
from moe_export.pack.stored_layers import stored_layers
from moe_export.plan import BuildPlan
from moe_export.progress import Progress
from moe_export.runners.arrays import Array
from moe_export.runners.eager import EagerRunner
from moe_export.runners.onnxruntime import OnnxRuntimeRunner
from moe_export.sources.model import LoadedModel
from moe_export.verify.cases import Case
from moe_export.verify.judge import kept_outputs
from moe_export.verify.kernel_error import compare_kernels
from moe_export.verify.quantization_report import (
    ErrorSum,
    LayerQuantization,
    QuantizationError,
    QuantizationReport,
)
from moe_export.verify.stage import input_shapes
from moe_export.verify.steps import make_sweep


@dataclass(frozen=True)
class EagerCase:
    """A case of the sweep with eager's outputs by name."""

    case: Case
    outputs: Mapping[str, Array]


def run_eager(
    loaded: LoadedModel, packed: PackedModel, plan: BuildPlan, library: Path | None
) -> list[EagerCase]:
    """Eager's outputs on the cases of the parity sweep, without those that it does not run on.

    Raises:
        UnsupportedModelError: it runs on none.
    """
    runner = OnnxRuntimeRunner(packed.path, library)
    sweep, eager = (
        make_sweep(loaded, input_shapes(loaded, runner), plan),
        EagerRunner(loaded.run, ()),
    )
    cases, error = [], None
    for shape in sweep.shapes():
        case = sweep.draw(shape)
        try:
            cases.append(EagerCase(case, eager.run(case.inputs)))
        except UnsupportedModelError as refused:  # parity has said so
            error = refused
    if not cases and error is not None:
        raise error
    return cases


def measure_outputs(
    path: Path, library: Path | None, cases: Sequence[EagerCase]
) -> dict[str, QuantizationError]:
    """Error of each floating-point output of a written model against eager, over all cases.

    Args:
        path: The ONNX file.
        library: The op library.
        cases: What eager gave.
    """
    runner = OnnxRuntimeRunner(path, library)
    sums: dict[str, ErrorSum] = {}
    for eager in cases:
        found = runner.run(eager.case.inputs)
        for name, expected in eager.outputs.items():
            if np.issubdtype(expected.dtype, np.floating):
                pair = kept_outputs(eager.case, found[name], expected)
                sums.setdefault(name, ErrorSum()).add(*pair)
    return {name: total.error() for name, total in sums.items()}


def measure_quantization(
    exact: PackedModel,
    packed: PackedModel,
    library: Path | None,
    cases: Sequence[EagerCase],
    plan: BuildPlan,
    progress: Progress,
    *,
    written: PackedModel | None = None,
) -> QuantizationReport:
    """Compare a model with smaller weights with eager, its layers with the float32 model's.

    Args:
        exact: The model in float32, as parity was checked on.
        packed: The model with smaller weights.
        library: The op library.
        cases: What eager gave.
        plan: Gives the seed.
        progress: Moves a bar.
        written: The bundle's model, where ``packed`` has its weights' numbers in float32 because
            the bundle's kernels do not run here; no kernel is compared then.
    """
    inputs, layers = _largest(cases).case.inputs, packed.lowered.layers
    stored, measured = stored_layers(written or packed), []
    seen, rounded = (_record(model, layers, inputs, library) for model in (exact, packed))
    for layer in progress.track(layers, "rounded layers"):
        kernels = {}
        if written is None and stored[layer.path].weight_type != "fp32":
            kernels = compare_kernels(packed, layer.path, library, plan.seed)
        ids = [np.sort(found[layer.expert_ids], axis=1) for found in (seen, rounded)]
        measured.append(
            LayerQuantization(
                layer.path,
                stored[layer.path],
                _layer_error(packed, layer, seen, library),
                tokens=len(ids[0]),
                rerouted=int((ids[0] != ids[1]).any(axis=1).sum()),
                kernel_errors=kernels,
            )
        )
    return QuantizationReport(measure_outputs(packed.path, library, cases), tuple(measured))


def layer_errors(
    exact: PackedModel,
    packed: PackedModel,
    cases: Sequence[EagerCase],
    library: Path | None,
    progress: Progress,
) -> dict[str, QuantizationError]:
    """Error of every layer's experts alone, by its path; see ``measure_quantization``."""
    layers = packed.lowered.layers
    seen = _record(exact, layers, _largest(cases).case.inputs, library)
    tracked = progress.track(layers, "rounded layers")
    return {layer.path: _layer_error(packed, layer, seen, library) for layer in tracked}


def _layer_error(
    packed: PackedModel, layer: LoweredLayer, seen: Mapping[str, Array], library: Path | None
) -> QuantizationError:
    """Error of a layer's experts alone, on what they see in the float32 model.

    Args:
        packed: The model with smaller weights.
        layer: The layer.
        seen: Values of the float32 model around its experts, by name.
        library: The op library.
    """
    with _temporary(write_experts(packed, layer, "experts.onnx")) as path:
        runner = OnnxRuntimeRunner(path, library)
    feeds = {
        "x": seen[layer.x],
        "expert_ids": seen[layer.expert_ids],
        "expert_weights": seen[layer.expert_weights],
    }
    total = ErrorSum()
    total.add(runner.run(feeds)["y"], seen[layer.y])
    return total.error()


def _record(
    packed: PackedModel,
    layers: Sequence[LoweredLayer],
    inputs: Mapping[str, Array],
    library: Path | None,
) -> dict[str, Array]:
    """Values around every layer's experts, by name."""
    names = [v for la in layers for v in (la.x, la.expert_ids, la.expert_weights, la.y)]
    with _temporary(write_probe(packed, names, "probe.onnx")) as path:
        return {**inputs, **OnnxRuntimeRunner(path, library).run(inputs)}


def _largest(cases: Sequence[EagerCase]) -> EagerCase:
    return max(cases, key=lambda eager: sum(array.size for array in eager.case.inputs.values()))


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A file that is gone when the block ends; a session that was opened from it stays."""
    try:
        yield path
    finally:
        path.unlink()
