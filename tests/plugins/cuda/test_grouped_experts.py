"""`GroupedExperts` on the GPU's kernels, run on the CPU, against the reference: every variant."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from moe_export.gpu.layers import ELEMENT_DTYPES, Layer, UploadedLayer
from moe_export.ops.storage import WeightStorage
from moe_export.tolerances import GPU_TOLERANCES
from tests.plugins.drawn_experts import expected_output, layers

FORMS = [("fp32", "fp32", 0, False, 16)] + [
    (element, weight or element, block, zero, tile)
    for element in ("fp16", "bf16")
    for weight, block, zero, tiles in (
        (None, 0, False, (16, 64, 128)),
        ("int8", 0, False, (16, 64, 128)),
        ("int4", 32, True, (16, 64)),
        ("int4", 128, False, (16, 64)),
        ("fp8", 0, False, (16, 64)),
    )
    for tile in tiles
]


@pytest.mark.parametrize(("element", "weight", "block", "zero", "tile"), FORMS)
def test_every_variant_computes_the_layer(library, device, element, weight, block, zero, tile):
    library.need_form(element, WeightStorage(weight_type=weight, block_size=block), tile)

    seeds = itertools.count()

    @settings(
        max_examples=5,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(layers(((weight, block, zero),)))
    def check(drawn):
        attributes, inputs = drawn
        x = inputs["x"].astype(ELEMENT_DTYPES[element]).astype(np.float32)
        layer = Layer(attributes, element, inputs | {"x": x})
        uploaded = UploadedLayer(layer, library, device)
        # Another order of threads; asynchronous products read their operands late for odd seeds.
        os.environ["MOE_EXPORT_TEST_SEED"] = str(next(seeds))
        uploaded.run(tile)
        expected = expected_output(attributes, layer.inputs)
        size = np.abs(expected).max(initial=1e-3)
        error = np.abs(uploaded.output() - expected).max(initial=0)
        device.release()
        assert error <= GPU_TOLERANCES[element] * size

    check()
