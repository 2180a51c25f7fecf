"""The record of what smaller weights cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moe_export.pack.stored_layers import StoredLayer
from moe_export.runners.arrays import Array
from moe_export.tolerances import KERNEL_TOLERANCES


@dataclass(frozen=True)
class QuantizationError:
    """How far rounded weights move a result.

    Attributes:
        largest: Largest difference over the largest magnitude.
        rms: Root of the summed squared differences over that of the squared values.
    """

    largest: float
    rms: float


class ErrorSum:
    """Adds up the error of one result over several inputs."""

    def __init__(self) -> None:
        self._difference = self._magnitude = 0.0
        self._squared_difference = self._squared = 0.0

    def add(self, found: Array, expected: Array) -> None:
        """Compare a result with what it should be; what is not finite makes the error infinite."""
        if found.shape != expected.shape:
            self._difference = self._squared_difference = math.inf
            return
        finite = np.isfinite(expected)
        wanted = expected[finite].astype(np.float64)
        difference = found[finite] - wanted
        if not np.isfinite(difference).all():
            self._difference = self._squared_difference = math.inf
            return
        self._difference = max(self._difference, float(np.abs(difference).max(initial=0)))
        self._magnitude = max(self._magnitude, float(np.abs(wanted).max(initial=0)))
        self._squared_difference += float(np.square(difference).sum())
        self._squared += float(np.square(wanted).sum())

    def error(self) -> QuantizationError:
        """The error of all that was added."""
        return QuantizationError(
            self._difference / (self._magnitude or 1.0),
            math.sqrt(self._squared_difference / (self._squared or 1.0)),
        )


@dataclass(frozen=True)
class LayerQuantization:
    """How the expert weights of one call of a layer are stored, and what that costs.

    Attributes:
        path: The layer's path.
        stored: How its weights are stored.
        error: Of its experts' sum, on the inputs and the routing of the float32 model.
        tokens: Tokens that the layer saw.
        rerouted: How many of them go to other experts than in float32, since rounded layers before
            it move its router's logits.
        kernel_errors: Of the kernel against the reference on the stored weights, by routing; empty
            where the weights are float32, which parity covers, and for a GPU's kernels.
    """

    path: str
    stored: StoredLayer
    error: QuantizationError
    tokens: int = 0
    rerouted: int = 0
    kernel_errors: Mapping[str, float] = field(default_factory=dict)

    def failures(self) -> list[str]:
        """What is not the rounding of weights, in words."""
        if not self.kernel_errors:
            return []
        allowed, kind = KERNEL_TOLERANCES[self.stored.weight_type], self.stored.weight_type
        return [
            f"{self.path or '<root>'}: the {kind} kernel differs from the reference on its stored "
            f"weights by {error:.1e} with {routing} (allowed {allowed:.1e})"
            for routing, error in self.kernel_errors.items()
            if not error <= allowed
        ]


@dataclass(frozen=True)
class QuantizationReport:
    """What smaller weights cost.

    Attributes:
        outputs: Error of each output of the model against eager, over all cases.
        layers: The MoE layers in order.
        max_error: The bound that was asked for, if one was.
        kept: Paths of layers that stayed in float32 for it.
    """

    outputs: Mapping[str, QuantizationError]
    layers: tuple[LayerQuantization, ...]
    max_error: float | None = None
    kept: tuple[str, ...] = ()

    @property
    def error(self) -> QuantizationError:
        """The largest errors of any output; ``max_error`` bounds the RMS one."""
        return largest_error(self.outputs)

    def failures(self) -> list[str]:
        """What is wrong beyond the rounding of weights, in words."""
        broken = [n for n, error in self.outputs.items() if not math.isfinite(error.rms)]
        failures = [f"{name} is not finite with rounded weights" for name in broken]
        return failures + [failure for layer in self.layers for failure in layer.failures()]

    def summary(self) -> dict[str, Any]:
        """What the manifest keeps."""
        return {**vars(self.error), "max_error": self.max_error, "kept": list(self.kept)}


def largest_error(errors: Mapping[str, QuantizationError]) -> QuantizationError:
    """The largest of each kind."""
    return QuantizationError(
        max((error.largest for error in errors.values()), default=0.0),
        max((error.rms for error in errors.values()), default=0.0),
    )
