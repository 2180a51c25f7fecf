"""What comparing a bundle's example showed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class OutputResult:
    """An output of the whole model: its relative RMS error against eager in float32."""

    name: str
    rms: float
    allowed: float
    eager_rms: float | None = None


@dataclass(frozen=True)
class LayerResult:
    """How a layer routes the example's tokens, against eager in float32."""

    path: str
    tokens: int
    rerouted: int
    allowed: int


@dataclass(frozen=True)
class NodeResult:
    """A custom node against the reference on what it read; ``error`` is None if not compared."""

    name: str
    op: str
    error: float | None
    allowed: float


@dataclass(frozen=True)
class ReplayReport:
    """Everything that was compared.

    Attributes:
        device: Where the bundle ran.
        runs: How often.
        repeatable: Every run gave the same bits.
        outputs: Of the whole model.
        layers: MoE layers in the order they run.
        nodes: Custom nodes in the graph's order.
    """

    device: str
    runs: int
    repeatable: bool
    outputs: tuple[OutputResult, ...]
    layers: tuple[LayerResult, ...]
    nodes: tuple[NodeResult, ...]

    @property
    def passed(self) -> bool:
        """Whether everything is within its bound."""
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """What is not, in words."""
        return tuple(self._failures())

    def _failures(self) -> Iterator[str]:
        if not self.repeatable:
            yield f"{self.runs} runs on the same input gave different bits"
        for output in self.outputs:
            if not output.rms <= output.allowed:
                yield (
                    f"{output.name} differs from eager by {output.rms:.1e} (RMS, allowed "
                    f"{output.allowed:.1e})"
                )
        for layer in self.layers:
            if layer.rerouted > layer.allowed:
                yield (
                    f"{layer.path or '<root>'}: {layer.rerouted} of {layer.tokens} tokens go to "
                    f"other experts (allowed {layer.allowed})"
                )
        for node in self.nodes:
            if node.error is not None and not node.error <= node.allowed:
                yield (
                    f"{node.name} differs from the reference on its own inputs by "
                    f"{node.error:.1e} (allowed {node.allowed:.1e})"
                )

    def to_json(self) -> dict[str, Any]:
        """Plain values; an infinite error is text that ``float`` reads."""
        values = {"passed": self.passed, "failures": list(self.failures), **asdict(self)}
        for item in (*values["outputs"], *values["nodes"]):
            for key in ("rms", "error"):
                if isinstance(item.get(key), float) and not math.isfinite(item[key]):
                    item[key] = str(item[key])
        return values
