"""Time a layer on the GPU, by form, number of tokens and tile."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from moe_bench.layers import Layer
from moe_bench.routing import draw_call

from gpu_bench.limits import count_work, occupancy
from moe_export.gpu.c_api import GpuLibrary
from moe_export.gpu.layers import Form, UploadedLayer, make_layer
from moe_export.gpu.layers import Layer as GpuLayer
from moe_export.ops.spec import GroupedExperts
from moe_export.runners.device import Device

_REPEATS = 50


@dataclass(frozen=True)
class Result:
    """One layer in one form for a number of tokens.

    Attributes:
        layer: Of what model.
        form: Types of activations and weights.
        tokens: Of the call.
        hit: Experts that were reached.
        median_us: Of the whole layer, with the tile that the library chooses.
        tiles_us: By the rows of a tile.
        bytes_read, operations: What had to be done.
        occupancy: Of the first product by the rows of a tile: threads that run at once, of those
            that a multiprocessor takes; None where that is not known.
    """

    layer: str
    form: str
    tokens: int
    hit: int
    median_us: float
    tiles_us: dict[str, float]
    bytes_read: int
    operations: int
    occupancy: dict[str, float | None]


def measure(
    library: GpuLibrary, device: Device, layer: Layer, forms: Sequence[Form], tokens: Sequence[int]
) -> Iterator[Result]:
    """Yield a result for every form and number of tokens."""
    capability = library.number("device_capability")
    for form in forms:
        weights = draw_weights(layer, form)
        attributes = weights.packed_attributes
        for count in tokens:
            call = draw_call(layer, count, seed=count)
            inputs = dict(weights.inputs) | {
                "x": call.x,
                "expert_ids": call.expert_ids,
                "expert_weights": call.expert_weights,
            }
            uploaded = UploadedLayer(replace(weights, inputs=inputs), library, device)
            tiles = library.expert_tiles(attributes, form.element_type)
            times = {tile: _median(device, uploaded, tile) for tile in (0, *tiles)}
            device.release()
            work = count_work(layer, form, count, call.hit)
            yield Result(
                layer.name,
                str(form),
                count,
                call.hit,
                times[0],
                {str(tile): times[tile] for tile in tiles},
                work.bytes_read,
                work.operations,
                {
                    str(tile): occupancy(
                        library.product_resources(attributes, form.element_type, tile, capability),
                        capability,
                    )
                    for tile in tiles
                },
            )


def _median(device: Device, uploaded: UploadedLayer, tile: int) -> float:
    return statistics.median(device.time_us(lambda: uploaded.run(tile), _REPEATS))


def draw_weights(layer: Layer, form: Form) -> GpuLayer:
    """Weights of one expert, copied: a kernel's time does not depend on what they are."""
    attributes = GroupedExperts(
        num_experts=1,
        hidden_size=layer.hidden,
        intermediate_size=layer.intermediate,
        gated=layer.gated,
        activation=layer.activation,
    )
    nobody = np.zeros((0, layer.top_k), np.int32)
    one = make_layer(form, attributes, nobody, np.random.default_rng(0))
    copies = {
        name: np.repeat(array, layer.experts, axis=0)
        for name, array in one.inputs.items()
        if name.startswith(("up_", "down_"))
    }
    return replace(
        one, attributes=replace(one.attributes, num_experts=layer.experts), inputs=copies
    )
