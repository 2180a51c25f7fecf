"""Stage 8: the sweep over shapes, layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from moe_export.errors import UnsupportedModelError
from moe_export.load.model import LoadedModel, restore_dtypes, to_float32
from moe_export.lower.stage import LoweredLayer
from moe_export.pack.model_file import PackedModel, write_probe
from moe_export.plan import BuildPlan
from moe_export.progress import Progress
from moe_export.runners.eager import EagerRunner, Trace
from moe_export.runners.onnxruntime import Array, OnnxRuntimeRunner
from moe_export.tolerances import (
    BATCH_COUPLING_TOLERANCE,
    LAYER_TOLERANCE,
    MAX_TIED_SHARE,
    ROUTING_WEIGHT_TOLERANCE,
    output_tolerance,
)
from moe_export.verify.cases import Case, InputShape, Sweep
from moe_export.verify.compare import compare_routing, relative_error
from moe_export.verify.experts_alone import compare_experts_alone
from moe_export.verify.report import CaseResult, LayerResult, ParityReport

_DRAWS = 5
_PROBE_NAME = "probe.onnx"


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
    values = [v for la in layers for v in (la.expert_ids, la.expert_weights, la.y)]
    probe = write_probe(packed, values, _PROBE_NAME)
    try:
        runner = OnnxRuntimeRunner(probe, library)
    finally:
        probe.unlink()
    eager = EagerRunner(loaded.run, [layer.block for layer in layers])
    sweep = Sweep(_input_shapes(loaded, runner), plan.dynamic, plan.seed)
    judge = _Judge(layers, progress)
    for name, sizes, padded in progress.track(list(sweep.shapes()), "cases"):
        judge.run_case(sweep, name, sizes, padded, eager, runner)
    for layer in progress.track(layers, "layers"):
        judge.add_alone(layer, compare_experts_alone(packed, layer, library, plan.seed))
    coupled = _is_batch_coupled(sweep, runner)
    source_dtype, source_error = _compare_source_dtype(loaded, sweep, runner, progress)
    return judge.report(coupled, source_dtype, source_error)


def _input_shapes(loaded: LoadedModel, runner: OnnxRuntimeRunner) -> tuple[InputShape, ...]:
    return tuple(
        InputShape(s.name, s.shape, loaded.inputs[s.name].numpy(), loaded.integer_ranges.get(s.name))
        for s in runner.inputs
    )


class _Judge:
    """Collects results and says what broke a tolerance."""

    def __init__(self, layers: Sequence[LoweredLayer], progress: Progress) -> None:
        self._layers, self._progress = layers, progress
        self._results = {
            la.block.path: LayerResult(la.block.path, la.block.experts.num_experts) for la in layers
        }
        self._reached: dict[str, set[int]] = {la.block.path: set() for la in layers}
        self._cases: list[CaseResult] = []
        self._failures: list[str] = []
        self._diverging: str | None = None

    def run_case(
        self,
        sweep: Sweep,
        name: str,
        sizes: Mapping[str, int],
        padded: str | None,
        eager: EagerRunner,
        runner: OnnxRuntimeRunner,
    ) -> None:
        """Compare one case; draw it again while a tie made eager route otherwise."""
        tied = 0
        for draw in range(_DRAWS):
            case = sweep.draw(name, sizes, padded)
            try:
                trace = eager.trace(case.inputs)
            except UnsupportedModelError as error:
                self._progress.remark(f"{name}: left out, since eager does not run on it ({error})")
                return
            found = runner.run(case.inputs)
            flipped = self._compare_layers(case, trace, found)
            tied += flipped
            if not flipped:
                break
        shapes = {n: list(a.shape) for n, a in case.inputs.items()}
        errors = {n: _output_error(case, found[n], trace.outputs[n]) for n in trace.outputs}
        self._cases.append(CaseResult(name, shapes, errors, tied, draw))
        tolerance = output_tolerance(len(self._layers))
        for output, error in errors.items():
            if not error <= tolerance and not flipped:
                self._failures.append(
                    f"{output} differs by {error:.1e} on {name} (allowed {tolerance:.1e})"
                )

    def _compare_layers(self, case: Case, trace: Trace, found: Mapping[str, Array]) -> int:
        """Compare every layer of one case; returns how many tokens were routed within a tie."""
        flipped = 0
        for layer in self._layers:
            path = layer.block.path
            eager = trace.layers[path]
            kept = _kept_tokens(case, len(eager.expert_ids))
            routing = compare_routing(
                found[layer.expert_ids][kept],
                found[layer.expert_weights][kept],
                eager.expert_ids[kept],
                eager.expert_weights[kept],
                eager.margin[kept],
            )
            old = self._results[path]
            tied = int(routing.tied.sum())
            # After a tie went the other way, later numbers differ rightly.
            error = old.output_error
            if eager.y is not None and flipped + tied == 0:
                error = max(error or 0.0, relative_error(found[layer.y][kept], eager.y[kept]))
            self._reached[path].update(np.unique(eager.expert_ids[kept]).tolist())
            counts = np.bincount(
                eager.expert_ids[eager.expert_ids < old.num_experts].reshape(-1),
                minlength=old.num_experts,
            )
            rows = eager.rows_per_expert
            self._results[path] = dataclasses.replace(
                old,
                tokens=old.tokens + int(kept.sum()),
                disagreeing=old.disagreeing + (int(routing.disagreeing.sum()) if not flipped else 0),
                tied=old.tied + tied,
                weight_error=max(old.weight_error, routing.weight_error if not flipped else 0.0),
                output_error=error,
                smallest_margin=min(old.smallest_margin, float(eager.margin[kept].min(initial=np.inf))),
                miscounted=old.miscounted or (len(rows) > 0 and tuple(counts.tolist()) != rows),
            )
            flipped += tied
            self._note_divergence(path)
        return flipped

    def _note_divergence(self, path: str) -> None:
        if self._diverging is None and _layer_failures(self._results[path], len(self._layers)):
            self._diverging = path

    def add_alone(self, layer: LoweredLayer, alone: object) -> None:
        """Add what the experts alone showed."""
        from moe_export.verify.experts_alone import AloneResult

        if isinstance(alone, AloneResult):
            path = layer.block.path
            self._results[path] = dataclasses.replace(
                self._results[path], alone=alone.errors, experts_run=alone.experts_run
            )
            self._note_divergence(path)

    def report(
        self, coupled: bool, source_dtype: str | None, source_error: float | None
    ) -> ParityReport:
        """Everything so far, with remarks on experts that were not reached."""
        results = []
        for path, result in self._results.items():
            final = dataclasses.replace(result, experts_reached=self._count_reached(path))
            results.append(final)
            self._failures += _layer_failures(final, len(self._layers))
            self._remark_experts(final)
        if not self._cases:
            self._failures.append("no case could be compared")
        return ParityReport(
            failures=tuple(self._failures),
            cases=tuple(self._cases),
            layers=tuple(results),
            first_diverging_layer=self._diverging,
            batch_coupled=coupled,
            source_dtype=source_dtype,
            source_dtype_error=source_error,
        )

    def _count_reached(self, path: str) -> int:
        count = self._results[path].num_experts
        return len([e for e in self._reached[path] if 0 <= e < count])

    def _remark_experts(self, result: LayerResult) -> None:
        if result.experts_run is not None and result.experts_run < result.num_experts:
            self._progress.remark(
                f"{result.path}: eager itself computes only {result.experts_run} of "
                f"{result.num_experts} experts"
            )
        if result.experts_reached < result.num_experts:
            self._progress.remark(
                f"{result.path}: random inputs reach {result.experts_reached} of "
                f"{result.num_experts} experts through the router"
            )


def _layer_failures(result: LayerResult, num_layers: int) -> list[str]:
    name, failures = result.path or "<root>", []
    if result.disagreeing:
        failures.append(
            f"{name}: {result.disagreeing} of {result.tokens} tokens go to other experts"
        )
    if result.tied > MAX_TIED_SHARE * max(result.tokens, 1):
        failures.append(f"{name}: {result.tied} of {result.tokens} tokens are tied: nothing is proved")
    if not result.weight_error <= ROUTING_WEIGHT_TOLERANCE:
        failures.append(f"{name}: expert weights differ by {result.weight_error:.1e}")
    if result.output_error is not None and not result.output_error <= output_tolerance(num_layers):
        failures.append(f"{name}: the experts' sum differs by {result.output_error:.1e}")
    if result.miscounted:
        failures.append(f"{name}: eager called its experts with other rows than its routing says")
    failures += [
        f"{name}: experts alone, {routing}, differ by {error:.1e}"
        for routing, error in result.alone.items()
        if not error <= LAYER_TOLERANCE
    ]
    return failures


def _kept_tokens(case: Case, tokens: int) -> Array:
    """Tokens that count: those that an attention mask keeps, where the layer sees the same tokens."""
    if case.attended is not None and case.attended.size == tokens:
        return case.attended.reshape(-1)
    return np.ones(tokens, bool)


def _output_error(case: Case, found: Array, expected: Array) -> float:
    mask = case.attended
    if mask is not None and expected.shape[: mask.ndim] == mask.shape == found.shape[: mask.ndim]:
        return relative_error(found[mask], expected[mask])
    return relative_error(found, expected)


def _is_batch_coupled(sweep: Sweep, runner: OnnxRuntimeRunner) -> bool:
    """Whether the first sample's result changes when others are in the batch."""
    symbol = next((s.shape[0] for s in runner.inputs if s.shape), None)
    shapes = [
        (name, sizes) for name, sizes, padded in sweep.shapes()
        if isinstance(symbol, str) and sizes.get(symbol, 0) >= 3 and padded is None
    ]  # fmt: skip
    outputs = [s.name for s in runner.outputs if s.shape and s.shape[0] == symbol]
    if not shapes or not outputs:
        return False
    case = sweep.draw(*shapes[0], None)
    batched = {s.name for s in runner.inputs if s.shape and s.shape[0] == symbol}
    alone = runner.run({n: a[:1] if n in batched else a for n, a in case.inputs.items()})
    together = runner.run(case.inputs)
    errors = [relative_error(alone[name], together[name][:1]) for name in outputs]
    return not max(errors) <= BATCH_COUPLING_TOLERANCE


def _compare_source_dtype(
    loaded: LoadedModel, sweep: Sweep, runner: OnnxRuntimeRunner, progress: Progress
) -> tuple[str | None, float | None]:
    """Error against eager in the checkpoint's own half precision; it is reported, not judged."""
    if not loaded.source_dtypes:
        return None, None
    dtype = next(iter(loaded.source_dtypes.values()))
    name = str(dtype).removeprefix("torch.")
    case = sweep.draw(*next(s for s in reversed(list(sweep.shapes())) if s[2] is None))
    floats = [n for n, a in case.inputs.items() if np.issubdtype(a.dtype, np.floating)]
    found = runner.run(case.inputs)
    restore_dtypes(loaded.model, loaded.source_dtypes)
    try:
        expected = EagerRunner(loaded.run, ()).run(case.inputs, dict.fromkeys(floats, dtype))
    except UnsupportedModelError as error:
        progress.remark(f"no comparison in {name}: eager does not run in it on this machine ({error})")
        return name, None
    finally:
        to_float32(loaded.model)
    return name, max(_output_error(case, found[n], expected[n]) for n in expected)
