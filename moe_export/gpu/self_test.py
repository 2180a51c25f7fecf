"""Every variant of the GPU's kernels against the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from moe_export.gpu.c_api import GpuLibrary
from moe_export.gpu.layers import ELEMENT_DTYPES, Form, UploadedLayer, list_forms, make_layer
from moe_export.ops import reference
from moe_export.ops.spec import GroupedExperts, TopKGating
from moe_export.runners.device import Device
from moe_export.tolerances import GPU_TOLERANCES, INNER_TOLERANCE

# Sizes that are no multiple of a tile or a step, and forms that take every branch once.
_LAYERS = (
    GroupedExperts(num_experts=6, hidden_size=192, intermediate_size=136),
    GroupedExperts(
        num_experts=5,
        hidden_size=100,
        intermediate_size=75,
        activation="silu",
        alpha=1.702,
        limit=2.0,
        up_offset=1.0,
        has_bias=True,
        first_expert=2,
    ),
    GroupedExperts(
        num_experts=3,
        hidden_size=64,
        intermediate_size=160,
        gated=False,
        activation="gelu",
        weight_on="input",
    ),
)
_TOKENS = (1, 37, 150)


@dataclass(frozen=True)
class Check:
    """One variant's result.

    Attributes:
        kernel: What was run.
        error: Largest difference, of the largest output.
        tolerance: What it may be.
    """

    kernel: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """NaN is no pass."""
        return self.error <= self.tolerance


def list_checks(
    library: GpuLibrary, device: Device, *, forms: Sequence[Form] | None = None, seed: int = 0
) -> list[Callable[[], Check]]:
    """What runs the kernels of every form and tile, and gating, on random layers.

    Args:
        library: The GPU library.
        device: Where its kernels run.
        forms: Which; all of them by default.
        seed: Of the layers.
    """
    checks: list[Callable[[], Check]] = [
        partial(_check_gating, library, device, element_type, seed)
        for element_type in ELEMENT_DTYPES
    ]
    for form in list_forms() if forms is None else forms:
        rng = np.random.default_rng(seed)
        layer = make_layer(form, _LAYERS[0], np.zeros((1, 1), np.int32), rng)
        for tile in library.expert_tiles(layer.packed_attributes, form.element_type):
            checks.append(partial(_check_form, library, device, form, tile, seed))  # noqa: PERF401
    return checks


def _check_form(library: GpuLibrary, device: Device, form: Form, tile: int, seed: int) -> Check:
    rng = np.random.default_rng(seed)
    worst = 0.0
    for attributes in _LAYERS:
        for tokens in _TOKENS:
            # Ids of no expert, an expert without tokens, and one with most of them.
            first, last = attributes.first_expert, attributes.first_expert + attributes.num_experts
            ids = rng.integers(first - 1, last - 1, (tokens, 3)).astype(np.int64)
            ids[:, 0] = np.where(rng.random(tokens) < 0.7, first, ids[:, 0])
            layer = make_layer(form, attributes, ids, rng)
            uploaded = UploadedLayer(layer, library, device)
            uploaded.run(tile)
            found = uploaded.output()
            device.release()
            expected = reference.grouped_experts(attributes=layer.attributes, **layer.inputs)
            worst = _worse(worst, found, expected)
    return Check(f"{form}, tiles of {tile}", worst, GPU_TOLERANCES[form.element_type])


def _check_gating(library: GpuLibrary, device: Device, element_type: str, seed: int) -> Check:
    rng = np.random.default_rng(seed)
    attributes = TopKGating(
        top_k=6, score_function="sigmoid", num_groups=4, top_groups=2, group_score="top2_sum",
        has_selection_bias=True, renormalize=True, scale=2.5,
    )  # fmt: skip
    logits = rng.standard_normal((70, 160)).astype(ELEMENT_DTYPES[element_type])
    bias = rng.standard_normal(160).astype(np.float32)
    ids, weights = np.zeros((70, 6), np.int32), np.zeros((70, 6), np.float32)
    at = [device.allocate(array.nbytes) for array in (ids, weights)]
    inputs = (device.upload(logits), device.upload(bias))
    library.call(
        "top_k_gating", attributes, element_type, *logits.shape, *inputs, *at, device.stream
    )
    found_ids, found = (
        device.download(address, like) for address, like in zip(at, (ids, weights), strict=True)
    )
    device.release()
    expected_ids, expected = reference.top_k_gating(logits, attributes, bias)
    error = _worse(0.0, found, expected) if np.array_equal(found_ids, expected_ids) else np.inf
    return Check(f"gating of {element_type} logits", error, 4 * INNER_TOLERANCE)


def _worse(worst: float, found: np.ndarray, expected: np.ndarray) -> float:
    """The larger of an error and that of another result; NaN counts as infinity."""
    size = np.abs(expected).max(initial=1e-3)
    error = float(np.abs(found - expected).max(initial=0) / size)
    return max(worst, error if np.isfinite(error) else np.inf)
