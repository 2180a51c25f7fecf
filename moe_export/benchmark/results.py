"""What a benchmark found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Latency:
    """Percentiles of single runs, in seconds."""

    p50: float
    p90: float
    p99: float
    runs: int

    @classmethod
    def of(cls, seconds: tuple[float, ...]) -> Latency:
        """Of some runs."""
        p50, p90, p99 = (float(p) for p in np.percentile(seconds, (50, 90, 99)))
        return cls(p50, p90, p99, len(seconds))


@dataclass(frozen=True)
class LayerResult:
    """One MoE layer in one case; medians over profiled runs.

    Attributes:
        path: Where it is in the model.
        seconds: Its own nodes: experts, and the router where that is one node.
        share_of_run: Of the whole run's median latency.
        experts_hit: Mean of the distinct experts that a run's tokens reach; None if not known.
        read_bytes: Their stored weights.
        operations: Multiplications and additions of a run.
        share_of_limit: The time that reading or multiplying alone would take, whichever is longer,
            over the layer's.
        limited_by: ``read`` or ``arithmetic``.
    """

    path: str
    seconds: float
    share_of_run: float
    experts_hit: float | None = None
    read_bytes: float | None = None
    operations: float | None = None
    share_of_limit: float | None = None
    limited_by: str | None = None


@dataclass(frozen=True)
class CaseResult:
    """One kind of run.

    Attributes:
        name: Of the case.
        tokens: That a run adds.
        latency: Of the bundle.
        layers: Its MoE layers in order; empty where their times are not known.
        eager: Of eager PyTorch, if it was asked for.
        difference: Between their outputs, over eager's largest value.
    """

    name: str
    tokens: int
    latency: Latency
    layers: tuple[LayerResult, ...]
    eager: Latency | None = None
    difference: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """At the median latency."""
        return self.tokens / self.latency.p50

    @property
    def ratio(self) -> float | None:
        """Eager's median latency over the bundle's: above 1 the bundle is faster."""
        return None if self.eager is None else self.eager.p50 / self.latency.p50

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        own = {"tokens_per_second": self.tokens_per_second, "eager_over_bundle": self.ratio}
        return {**asdict(self), **own}


@dataclass(frozen=True)
class BenchResult:
    """All of it.

    Attributes:
        bundle: The folder.
        verified: Whether the bundle passed its comparison with eager.
        threads: Of every contender and limit.
        rounds: Turns of each.
        cases: In order.
        read_bandwidth: Bytes per second, median; None if it was not needed.
        rates: Multiplications and additions per second by what is multiplied, medians.
        machine: The processor and versions.
        remarks: What could not be measured, and why.
    """

    bundle: str
    verified: bool
    threads: int
    rounds: int
    cases: tuple[CaseResult, ...]
    read_bandwidth: float | None
    rates: Mapping[str, float]
    machine: Mapping[str, str]
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "cases": [case.to_json() for case in self.cases]}
