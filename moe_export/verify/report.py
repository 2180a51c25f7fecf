"""The record of a parity check."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moe_export.verify.quantization_report import QuantizationReport


@dataclass(frozen=True)
class CaseResult:
    """Outputs of the whole model on one input.

    Attributes:
        name: What is special about the input.
        shapes: Of the inputs by name.
        errors: Relative error of each output.
        tied_tokens: Tokens that a layer could rightly route either way and eager routed otherwise.
        redrawn: Times the input was drawn again because of such tokens.
    """

    name: str
    shapes: Mapping[str, list[int]]
    errors: Mapping[str, float]
    tied_tokens: int = 0
    redrawn: int = 0


@dataclass(frozen=True)
class LayerResult:
    """One MoE layer over all cases.

    Attributes:
        path: The module's path.
        num_experts: Experts it has.
        experts_reached: Experts that eager's routing chose at least once.
        experts_run: Experts that eager's own code computed when each was asked for; None where
            eager's experts cannot be called alone.
        tokens: Tokens compared.
        disagreeing: Tokens routed to other experts than eager's, ties aside.
        tied: Tokens routed otherwise within a tie.
        weight_error: Largest difference of an expert weight.
        output_error: Relative error of the experts' sum; None where it is not a value of its own.
        alone: Relative errors of the experts alone under forced routings, by the routing's name.
        smallest_margin: Nearest selection scores seen, relative.
        miscounted: Whether eager called its expert modules with other row counts than its routing.
    """

    path: str
    num_experts: int
    experts_reached: int = 0
    experts_run: int | None = None
    tokens: int = 0
    disagreeing: int = 0
    tied: int = 0
    weight_error: float = 0.0
    output_error: float | None = None
    alone: Mapping[str, float] = field(default_factory=dict)
    smallest_margin: float = float("inf")
    miscounted: bool = False


@dataclass(frozen=True)
class ParityReport:
    """Everything that was compared.

    Attributes:
        failures: What broke a tolerance, in words; empty if parity holds.
        cases: The whole model, case by case.
        layers: Its MoE layers in order.
        first_diverging_layer: Path of the first layer that differs, if one does.
        batch_coupled: Whether one sample changes another's result.
        source_dtype: The checkpoint's half-precision type, if it had one.
        source_dtype_error: Relative error against eager in that type; not judged.
        quantization: What smaller weights cost; all else was compared in float32. None where the
            bundle's weights are float32.
    """

    failures: tuple[str, ...]
    cases: tuple[CaseResult, ...]
    layers: tuple[LayerResult, ...]
    first_diverging_layer: str | None = None
    batch_coupled: bool = False
    source_dtype: str | None = None
    source_dtype_error: float | None = None
    quantization: QuantizationReport | None = None

    @property
    def passed(self) -> bool:
        """Whether every comparison stayed within its tolerance."""
        return not self.failures

    @property
    def max_error(self) -> float:
        """Largest relative error of any output in any case."""
        return max((e for case in self.cases for e in case.errors.values()), default=0.0)

    def with_quantization(self, quantization: QuantizationReport) -> ParityReport:
        """The report with what smaller weights cost, and with what is wrong about them."""
        broken = [layer.path for layer in quantization.layers if layer.failures()]
        first = self.first_diverging_layer
        return dataclasses.replace(
            self,
            failures=(*self.failures, *quantization.failures()),
            first_diverging_layer=first if first is not None or not broken else broken[0],
            quantization=quantization,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``parity.json``: an infinite margin is null, an infinite error "inf"."""
        values = dataclasses.asdict(self)
        for layer in values["layers"]:
            if layer["smallest_margin"] == float("inf"):
                layer["smallest_margin"] = None
        plain: dict[str, Any] = _plain(
            {"passed": self.passed, "max_error": self.max_error, **values}
        )
        return plain

    def summary(self) -> dict[str, Any]:
        """What the manifest keeps."""
        return {
            "status": "passed" if self.passed else "failed",
            "max_error": _plain(self.max_error),
            "cases": len(self.cases),
            "tokens": max((layer.tokens for layer in self.layers), default=0),
            "disagreeing_tokens": sum(layer.disagreeing for layer in self.layers),
            "tied_tokens": sum(layer.tied for layer in self.layers),
            "quantization": _plain(self.quantization.summary()) if self.quantization else None,
        }


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """``value`` with infinities, which JSON has no number for, as text that ``float`` reads."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
