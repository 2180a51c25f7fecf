"""What a layer's telemetry says: how even its load is, which experts idle and which are crowded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_export.errors import BundleError
from moe_export.runners.arrays import Array
from moe_export.telemetry.record import LayerTelemetry

# An expert with more than this many times the even share of its layer's choices is overloaded.
OVERLOAD_FACTOR = 2.0


@dataclass(frozen=True)
class ExpertLoad:
    """The load of one MoE layer in one run.

    Attributes:
        path: The layer's path in the model.
        tokens_per_expert: int64 ``[E]``, choices that went to each expert.
        mean_probability: float32 ``[E]``, mean over the tokens of ``probability``.
        dropped_tokens: What ``dropped`` describes.
        probability: Of what the mean is, in words.
        dropped: What is counted as dropped, in words.
    """

    path: str
    tokens_per_expert: Array
    mean_probability: Array
    dropped_tokens: int
    probability: str
    dropped: str

    @classmethod
    def read(cls, record: LayerTelemetry, outputs: Mapping[str, Array]) -> ExpertLoad:
        """Take a layer's load from the outputs of a run.

        Raises:
            BundleError: the graph does not have the outputs that the record names.
        """
        missing = [name for name in record.names if name not in outputs]
        if missing:
            raise BundleError(f"the graph has no output {missing[0]}, which its telemetry names")
        tokens, probability, dropped = (outputs[name] for name in record.names)
        return cls(
            record.path, tokens, probability, int(dropped), record.probability, record.dropped
        )

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.tokens_per_expert)

    @property
    def total(self) -> int:
        """Choices that went to any expert."""
        return int(self.tokens_per_expert.sum())

    @property
    def relative_load(self) -> Array:
        """float64 ``[E]``: each expert's choices over the even share; 0 if nothing was routed."""
        load: Array = self.tokens_per_expert * (self.num_experts / max(self.total, 1))
        return load

    @property
    def balance(self) -> float | None:
        """N times the sum over experts of f times p.

        f is the fraction of choices sent to an expert, p its share of the mean probability: 1 where
        either is even, N where one expert gets all (Fedus et al. 2021, equation 4). None if nothing
        was routed.
        """
        mass = float(self.mean_probability.sum(dtype=np.float64))
        if self.total == 0 or not mass > 0:
            return None
        return float(self.relative_load @ self.mean_probability.astype(np.float64)) / mass

    @property
    def dead(self) -> tuple[int, ...]:
        """Experts without a token."""
        return tuple(np.flatnonzero(self.tokens_per_expert == 0).tolist())

    @property
    def overloaded(self) -> tuple[int, ...]:
        """Experts above ``OVERLOAD_FACTOR`` times the even share, the fullest first."""
        load = self.relative_load
        order = np.argsort(-load, kind="stable")
        return tuple(order[load[order] > OVERLOAD_FACTOR].tolist())

    def to_json(self) -> dict[str, Any]:
        """Plain values; a probability that is no number is null."""
        mean = self.mean_probability.astype(np.float64).tolist()
        return {
            "path": self.path,
            "tokens_per_expert": self.tokens_per_expert.tolist(),
            "mean_probability": [p if np.isfinite(p) else None for p in mean],
            "dropped_tokens": self.dropped_tokens,
            "balance": self.balance,
            "dead": list(self.dead),
            "overloaded": list(self.overloaded),
            "probability": self.probability,
            "dropped": self.dropped,
        }
