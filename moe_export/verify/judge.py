"""Collect what the cases show, layer by layer, and say what broke a tolerance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from moe_export.lower.stage import LoweredLayer
from moe_export.progress import Progress
from moe_export.runners.arrays import Array
from moe_export.runners.eager import LayerTrace, Trace
from moe_export.telemetry.record import LayerTelemetry
from moe_export.tolerances import (
    LAYER_TOLERANCE,
    MAX_TIED_SHARE,
    ROUTING_WEIGHT_TOLERANCE,
    output_tolerance,
    relative_error,
)
from moe_export.verify.cases import Case
from moe_export.verify.compare import compare_routing
from moe_export.verify.experts_alone import AloneResult
from moe_export.verify.report import CaseResult, LayerResult, ParityReport
from moe_export.verify.telemetry import telemetry_failures


class Judge:
    """Collects results over all cases.

    Args:
        layers: The model's layers in the order they run.
        telemetry: Outputs that count what they route.
    """

    def __init__(
        self, layers: Sequence[LoweredLayer], telemetry: Sequence[LayerTelemetry] = ()
    ) -> None:
        self._layers, self._telemetry = layers, telemetry
        self._tolerance = output_tolerance(len(layers))
        self._results = {
            la.path: LayerResult(la.path, la.block.experts.num_experts) for la in layers
        }
        self._reached: dict[str, set[int]] = {la.path: set() for la in layers}
        self._cases: list[CaseResult] = []
        self._failures: list[str] = []
        self._diverging: str | None = None

    def compare_layers(self, case: Case, trace: Trace, found: Mapping[str, Array]) -> int:
        """Compare every layer of one case.

        Returns:
            How many tokens were routed otherwise within a tie. From the first such layer on,
            numbers and routing differ rightly, and are not judged.
        """
        flipped = 0
        for layer in self._layers:
            path = layer.path
            result, tied = self._compare_layer(layer, case, trace.layers[path], found)
            if flipped == 0:
                self._results[path] = result
                self._note_divergence(path)
            flipped += tied
        wrong = telemetry_failures(self._telemetry, self._layers, found)
        self._failures += [failure for failure in wrong if failure not in self._failures]
        return flipped

    def _compare_layer(
        self, layer: LoweredLayer, case: Case, eager: LayerTrace, found: Mapping[str, Array]
    ) -> tuple[LayerResult, int]:
        old = self._results[layer.path]
        kept = kept_tokens(case, len(eager.expert_ids))
        routing = compare_routing(
            found[layer.expert_ids][kept],
            found[layer.expert_weights][kept],
            eager.expert_ids[kept],
            eager.expert_weights[kept],
            eager.margin[kept],
            old.num_experts,
        )
        tied = int(routing.tied.sum())
        error = old.output_error
        if eager.y is not None and tied == 0:
            error = max(error or 0.0, relative_error(found[layer.y][kept], eager.y[kept]))
        self._reached[old.path].update(np.unique(eager.expert_ids[kept]).tolist())
        margin = float(eager.margin[kept].min(initial=np.inf))
        result = dataclasses.replace(
            old,
            tokens=old.tokens + int(kept.sum()),
            disagreeing=old.disagreeing + int(routing.disagreeing.sum()),
            tied=old.tied + tied,
            weight_error=max(old.weight_error, routing.weight_error),
            output_error=error,
            smallest_margin=min(old.smallest_margin, margin),
            miscounted=old.miscounted or _is_miscounted(eager, old.num_experts),
        )
        return result, tied

    def add_case(
        self,
        case: Case,
        errors: Mapping[str, float],
        *,
        tied_tokens: int,
        redrawn: int,
        judged: bool,
    ) -> None:
        """Add the whole model's outputs on one case; not judged after a tie in every draw."""
        shapes = {name: list(array.shape) for name, array in case.inputs.items()}
        self._cases.append(CaseResult(case.name, shapes, errors, tied_tokens, redrawn))
        self._failures += [
            f"{output} differs by {error:.1e} on {case.name} (allowed {self._tolerance:.1e})"
            for output, error in errors.items()
            if judged and not error <= self._tolerance
        ]

    def add_alone(self, path: str, alone: AloneResult) -> None:
        """Add what a layer's experts alone showed."""
        self._results[path] = dataclasses.replace(
            self._results[path], alone=alone.errors, experts_run=alone.experts_run
        )
        self._note_divergence(path)

    def report(self, progress: Progress) -> ParityReport:
        """Everything so far; remarks on experts that eager or the router never reaches."""
        results = [
            dataclasses.replace(r, experts_reached=self._count_reached(r))
            for r in self._results.values()
        ]
        failures = list(self._failures)
        for result in results:
            failures += layer_failures(result, self._tolerance)
            _remark_experts(result, progress)
        if not self._cases:
            failures.append("no case could be compared")
        return ParityReport(
            failures=tuple(failures),
            cases=tuple(self._cases),
            layers=tuple(results),
            first_diverging_layer=self._diverging,
        )

    def _note_divergence(self, path: str) -> None:
        if self._diverging is None and layer_failures(self._results[path], self._tolerance):
            self._diverging = path

    def _count_reached(self, result: LayerResult) -> int:
        return len([e for e in self._reached[result.path] if 0 <= e < result.num_experts])


def layer_failures(result: LayerResult, tolerance: float) -> list[str]:
    """What broke a tolerance in one layer, in words.

    Args:
        result: The layer's numbers.
        tolerance: On the experts' sum inside the whole model.
    """
    name, failures = result.path or "<root>", []
    if result.disagreeing:
        failures.append(f"{result.disagreeing} of {result.tokens} tokens go to other experts")
    if result.tied > MAX_TIED_SHARE * max(result.tokens, 1):
        failures.append(f"{result.tied} of {result.tokens} tokens are tied: nothing is proved")
    if not result.weight_error <= ROUTING_WEIGHT_TOLERANCE:
        failures.append(f"expert weights differ by {result.weight_error:.1e}")
    if result.output_error is not None and not result.output_error <= tolerance:
        failures.append(f"the experts' sum differs by {result.output_error:.1e}")
    if result.miscounted:
        failures.append("eager calls its experts with other rows than its routing says")
    failures += [
        f"experts alone, {routing}, differ by {error:.1e}"
        for routing, error in result.alone.items()
        if not error <= LAYER_TOLERANCE
    ]
    return [f"{name}: {failure}" for failure in failures]


def kept_tokens(case: Case, tokens: int) -> Array:
    """Which tokens count: those an attention mask keeps, where the layer sees the same tokens."""
    if case.attended is not None and case.attended.size == tokens:
        return case.attended.reshape(-1)
    return np.ones(tokens, bool)


def output_error(case: Case, found: Array, expected: Array) -> float:
    """Relative error of an output, at the positions that an attention mask keeps."""
    return relative_error(*kept_outputs(case, found, expected))


def kept_outputs(case: Case, found: Array, expected: Array) -> tuple[Array, Array]:
    """An output on both sides, at the positions that an attention mask keeps."""
    mask = case.attended
    if mask is not None and expected.shape[: mask.ndim] == mask.shape == found.shape[: mask.ndim]:
        return found[mask], expected[mask]
    return found, expected


def _is_miscounted(eager: LayerTrace, num_experts: int) -> bool:
    if not eager.rows_per_expert:
        return False
    ids = eager.expert_ids[(eager.expert_ids >= 0) & (eager.expert_ids < num_experts)]
    counts = np.bincount(ids.reshape(-1), minlength=num_experts)
    return tuple(counts.tolist()) != eager.rows_per_expert


def _remark_experts(result: LayerResult, progress: Progress) -> None:
    where = result.path or "<root>"
    if result.experts_run is not None and result.experts_run < result.num_experts:
        progress.remark(
            f"{where}: eager itself computes only {result.experts_run} of "
            f"{result.num_experts} experts"
        )
    if result.experts_reached < result.num_experts:
        progress.remark(
            f"{where}: random inputs reach {result.experts_reached} of "
            f"{result.num_experts} experts through the router"
        )
