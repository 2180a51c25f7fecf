"""Which outputs of a graph tell how a layer routes; the manifest keeps these records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from moe_export.errors import BundleError

CHOICES = "choices whose expert id is out of range"
TOKENS = "tokens that no expert takes"


@dataclass(frozen=True)
class LayerTelemetry:
    """Outputs of one MoE layer, by name.

    Attributes:
        path: The layer's path in the model.
        tokens_per_expert: int64 ``[E]``: choices, one for each token and place k, that hold the
            expert's id. Padding counts as the layer routes it.
        mean_probability: float32 ``[E]``: mean over the layer's tokens of the distribution that
            ``probability`` describes; 0 without a token.
        dropped_tokens: int64 scalar: what ``dropped`` describes.
        probability: Of what the mean is, in words.
        dropped: ``CHOICES``, or ``TOKENS`` where every token has a place for every expert, so that
            an empty place is no drop.
    """

    path: str
    tokens_per_expert: str
    mean_probability: str
    dropped_tokens: str
    probability: str
    dropped: str

    @property
    def names(self) -> tuple[str, str, str]:
        """The three outputs."""
        return self.tokens_per_expert, self.mean_probability, self.dropped_tokens

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LayerTelemetry:
        """Read what ``to_json`` gave.

        Raises:
            BundleError: an entry is missing, unknown or no text.
        """
        names = [field.name for field in fields(cls)]
        if sorted(values) != sorted(names) or not all(isinstance(v, str) for v in values.values()):
            raise BundleError(
                f"the manifest's telemetry must have the texts {', '.join(names)}; "
                f"found {', '.join(values)}"
            )
        return cls(**values)
