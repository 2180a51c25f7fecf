"""Time per MoE layer beside what the machine could do in the same moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_export.benchmark.cases import Case
from moe_export.benchmark.contenders import BundleContender
from moe_export.benchmark.limits import Limits
from moe_export.benchmark.profile import ProfiledRun, read_profile
from moe_export.benchmark.results import LayerResult
from moe_export.errors import EnvironmentLacksError
from moe_export.package.bundle import MODEL_NAME, Bundle
from moe_export.telemetry.expert_load import ExpertLoad

# Profiled runs of one turn.
_RUNS = 8


@dataclass(frozen=True)
class LayerWork:
    """What a run asks of a layer.

    Attributes:
        experts_hit: Distinct experts that its tokens reach.
        read_bytes: Their stored weights.
        operations: Multiplications and additions.
        weight_type: Of the weights.
    """

    experts_hit: int
    read_bytes: float
    operations: float
    weight_type: str


# By case's name, then by set of inputs, then by the layer's path.
Work = Mapping[str, Sequence[Mapping[str, LayerWork]]]


def find_work(bundle: Bundle, cases: Sequence[Case]) -> Work:
    """Run every set of inputs once and see which experts its tokens reach.

    Raises:
        EnvironmentLacksError: onnx-ir is not installed.
    """
    try:
        from moe_export.benchmark.layer_weights import LayerWeights, read_layer_weights
    except ModuleNotFoundError as error:
        raise EnvironmentLacksError(
            f"the experts that are hit and their share of the limit need {error.name}: "
            "pip install onnx-ir"
        ) from error
    weights = read_layer_weights(bundle.folder / MODEL_NAME)

    def work(load: ExpertLoad, stored: LayerWeights) -> LayerWork:
        hit = int(np.count_nonzero(load.tokens_per_expert))
        operations = float(load.total * stored.row_operations)
        return LayerWork(hit, hit * stored.expert_bytes, operations, stored.weight_type)

    return {
        case.name: [
            {
                load.path: work(load, weights[load.path])
                for load in bundle.expert_load({**inputs, **case.cache})
            }
            for inputs in case.inputs
        ]
        for case in cases
    }


@dataclass(frozen=True)
class _Sample:
    """What is known of a profiled run: its case, whether it counts, its work and the limits.

    Attributes:
        rates: Operations per second by weight type.
    """

    case: str
    kept: bool
    work: Mapping[str, LayerWork]
    read_bandwidth: float
    rates: Mapping[str, float]


class LayerProfiler:
    """Profiles a session of its own in turns, each behind a measurement of the limits.

    Args:
        bundle: What is run.
        work: Of ``find_work``; empty if that is not known.
        limits: Of the machine.
        folder: Where ONNX Runtime writes its profile.

    Attributes:
        read_bandwidths: Every measurement, bytes per second.
        rates: Every measurement, operations per second, by what was multiplied.
    """

    def __init__(self, bundle: Bundle, work: Work, limits: Limits, folder: Path) -> None:
        self._paths = [str(layer["path"]) for layer in bundle.manifest.layers]
        self._work, self._limits = work, limits
        self._runner = bundle.open_runner(profile=folder / "profile")
        self._contender = BundleContender(self._runner, bundle.manifest.generation)
        self._samples: list[_Sample] = []
        self.read_bandwidths: list[float] = []
        self.rates: dict[str, list[float]] = {}

    def turn(self, case: Case, number: int) -> None:
        """Measure the limits, then run the case on some of its inputs: others in each round."""
        sets = self._work.get(case.name, ())
        read, rates = self._measure_limits(sets) if sets else (0.0, {})
        for index in range(-1, min(_RUNS, len(case.inputs))):  # the first one warms up
            place = (number * _RUNS + max(index, 0)) % len(case.inputs)
            self._contender.prepare(case, place)()
            own = sets[place] if sets else {}
            self._samples.append(_Sample(case.name, index >= 0, own, read, rates))

    def _measure_limits(
        self, sets: Sequence[Mapping[str, LayerWork]]
    ) -> tuple[float, dict[str, float]]:
        """Read bandwidth, and rates by weight type."""
        every = [work for layers in sets for work in layers.values()]
        rates = {}
        for weight_type in sorted({work.weight_type for work in every}):
            rates[weight_type], name = self._limits.multiply_rate(weight_type)
            self.rates.setdefault(name, []).append(rates[weight_type])
        read = self._limits.read_bandwidth(int(np.mean([work.read_bytes for work in every])))
        self.read_bandwidths.append(read)
        return read, rates

    def finish(self, latencies: Mapping[str, float]) -> dict[str, tuple[LayerResult, ...]]:
        """Read the profile.

        Args:
            latencies: Seconds of a whole run by case, without a profile, which slows small nodes.

        Returns:
            The layers of each case in order; none where the profile does not know them.
        """
        runs = read_profile(self._runner.end_profile(), self._paths)
        pairs = list(zip(self._samples, runs, strict=True))
        found = {}
        for case, latency in latencies.items():
            own = [(s, run) for s, run in pairs if s.case == case and s.kept]
            layers = [_layer(path, own, latency) for path in self._paths]
            found[case] = tuple(layer for layer in layers if layer is not None)
        return found


def _layer(
    path: str, runs: Sequence[tuple[_Sample, ProfiledRun]], latency: float
) -> LayerResult | None:
    """Medians over the runs; None where the profile does not know the layer."""
    timed = [(sample, run) for sample, run in runs if path in run.layers]
    if not timed:
        return None
    seconds = float(np.median([run.layers[path] for _, run in timed]))
    share = seconds / latency
    known = [(s, s.work[path], run.layers[path]) for s, run in timed if path in s.work]
    if not known:
        return LayerResult(path, seconds, share)
    reading = [work.read_bytes / s.read_bandwidth for s, work, _ in known]
    multiplying = [work.operations / s.rates[work.weight_type] for s, work, _ in known]
    limit = np.maximum(reading, multiplying)
    taken = np.maximum([own for _, _, own in known], 1e-6)  # the profile's resolution
    return LayerResult(
        path,
        seconds,
        share,
        experts_hit=float(np.mean([work.experts_hit for _, work, _ in known])),
        read_bytes=float(np.mean([work.read_bytes for _, work, _ in known])),
        operations=float(np.mean([work.operations for _, work, _ in known])),
        share_of_limit=float(np.median(limit / taken)),
        limited_by="read" if np.median(reading) >= np.median(multiplying) else "arithmetic",
    )
