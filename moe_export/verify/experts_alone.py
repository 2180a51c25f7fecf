"""Compare the experts of one layer alone, under routings that a router seldom gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_export.lower.stage import LoweredLayer
from moe_export.pack.model_file import PackedModel, write_experts
from moe_export.runners.arrays import Array
from moe_export.runners.eager import run_experts
from moe_export.runners.onnxruntime import OnnxRuntimeRunner
from moe_export.tolerances import relative_error

_CROWD = 65


@dataclass(frozen=True)
class AloneResult:
    """Errors by routing, and how many experts eager's own code computed."""

    errors: Mapping[str, float]
    experts_run: int


def compare_experts_alone(
    packed: PackedModel, layer: LoweredLayer, library: Path | None, seed: int
) -> AloneResult | None:
    """Run a layer's experts under forced routings in eager and in the written model.

    Args:
        packed: The written model.
        layer: The layer.
        library: The op library, or None for the bodies in standard operators.
        seed: Seeds the rows.

    Returns:
        None where eager's experts cannot be called apart from their router.
    """
    if layer.block.eager_experts is None:
        return None
    path = write_experts(packed, layer, "experts.onnx")
    try:
        runner = OnnxRuntimeRunner(path, library)
    finally:
        path.unlink()
    errors, experts_run = {}, 0
    experts = layer.block.experts
    dtype = np.dtype(np.int32 if "int32" in runner.inputs[1].dtype else np.int64)
    for name, ids in _routings(experts.num_experts):
        random = np.random.default_rng(seed)
        x = random.standard_normal((len(ids), experts.hidden_size)).astype(np.float32)
        weights = (random.random(ids.shape) + 0.1).astype(np.float32)
        found = runner.run({"x": x, "expert_ids": ids.astype(dtype), "expert_weights": weights})[
            "y"
        ]
        if name == "ids out of range":
            errors[name] = relative_error(found, np.zeros_like(found))
            continue
        expected = run_experts(layer.block, x, ids, weights)
        errors[name] = relative_error(found, expected)
        if name == "every expert":
            experts_run = int((np.abs(expected).max(axis=1) > 0).sum())
    return AloneResult(errors, experts_run)


def _routings(num_experts: int) -> Iterator[tuple[str, Array]]:
    yield "every expert", np.arange(num_experts, dtype=np.int64)[:, None]
    yield "all on one expert", np.zeros((_CROWD, 1), np.int64)
    yield "ids out of range", np.array([[-1], [num_experts]], np.int64)
