"""What a build records of eager PyTorch on the example: ``example/`` in the bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_export.errors import BundleError, UsageError
from moe_export.runners.arrays import Array, read_arrays, write_arrays

EXAMPLE_FOLDER = "example"
_RECORD, _ROUTING = "record.json", "routing.npz"


@dataclass(frozen=True)
class RecordedLayer:
    """One call of an MoE layer.

    Attributes:
        path: The layer's path.
        expert_ids: Name of the graph's value ``[T, K]``.
        expert_weights: Likewise.
        num_experts: E.
        allowed_rerouted: Tokens that may go to other experts than in float32.
    """

    path: str
    expert_ids: str
    expert_weights: str
    num_experts: int
    allowed_rerouted: int


@dataclass(frozen=True)
class ExampleRecord:
    """What the example's outputs and routing are compared with.

    Attributes:
        dtype: Type of the bundle's activations.
        eager_rms: Relative RMS error, against float32, of eager itself in this type; empty where
            the type is float32 or eager does not run in it.
        allowed_rms: What an output's may be.
        layers: In the order they run.
    """

    dtype: str
    eager_rms: Mapping[str, float]
    allowed_rms: Mapping[str, float]
    layers: tuple[RecordedLayer, ...]

    def write(self, folder: Path, routing: Mapping[str, Array]) -> None:
        """Write the record into a bundle.

        Args:
            folder: The bundle.
            routing: Eager's in float32, by ``routing_key``.
        """
        text = json.dumps(asdict(self), indent=2, allow_nan=False)
        (folder / EXAMPLE_FOLDER / _RECORD).write_text(text + "\n", encoding="utf-8")
        write_arrays(folder / EXAMPLE_FOLDER / _ROUTING, routing)


def routing_key(layer: int, part: str) -> str:
    """Name of an array: ``expert_ids``, ``expert_weights`` or ``margin`` of a layer by number."""
    return f"{layer}.{part}"


def read_record(folder: Path) -> tuple[ExampleRecord, dict[str, Array]]:
    """The record of a bundle and eager's routing.

    Raises:
        UsageError: the bundle has none.
        BundleError: it is malformed.
    """
    path = folder / EXAMPLE_FOLDER / _RECORD
    if not path.is_file():
        raise UsageError(
            f"{folder} has no record of eager PyTorch to compare with: build it again, without "
            "--no-verify"
        )
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        layers = tuple(RecordedLayer(**layer) for layer in values.pop("layers"))
        record = ExampleRecord(**values, layers=layers)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BundleError(f"{path} is malformed: {error!r}") from error
    return record, read_arrays(folder / EXAMPLE_FOLDER / _ROUTING)
