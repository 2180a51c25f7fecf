"""`GroupedExperts` on the GPU's kernels, run on the CPU, against the reference: every variant."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from tests.plugins.cuda.host_functions import ELEMENTS, aligned
from tests.plugins.cuda.run_gpu_op import pack
from tests.plugins.drawn_experts import expected_output, layers

# Of the largest output: rounding of what lies between the products, and of y, to 2^-11 or 2^-8, and
# relu2 doubles it; float32 sums of some hundred products.
TOLERANCES = {"fp32": 2e-5, "fp16": 3e-3, "bf16": 2.5e-2}

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


def run_layer(functions, element, tile, attributes, inputs):
    """Output of a layer whose weights are given row-major."""
    a = replace(attributes, weight_layout="cuda_v1")
    x = aligned(inputs["x"].astype(ELEMENTS[element]))
    ids = aligned(inputs["expert_ids"])
    y = aligned(np.full_like(x, np.nan))
    packed = [
        pack(
            a,
            inputs[f"{name}_weight"],
            columns,
            *(inputs.get(f"{name}_{part}") for part in ("scale", "zero")),
        )
        for name, columns in (("up", a.hidden_size), ("down", a.intermediate_size))
    ]
    biases = [aligned(inputs[f"{n}_bias"]) if a.has_bias else None for n in ("up", "down")]
    functions.call(
        "run_grouped_experts",
        *(a, element, tile, *ids.shape, x, ids, ids.dtype == np.int64),
        *(aligned(inputs["expert_weights"]), *packed, *biases, y),
    )
    return y.astype(np.float32)


@pytest.mark.parametrize(("element", "weight", "block", "zero", "tile"), FORMS)
def test_every_variant_computes_the_layer(functions, element, weight, block, zero, tile):
    stored = f"{weight}b32" if block == 32 else weight
    functions.need(f"gated_matmul_{element}_{stored}_m{tile}", f"matmul_{element}_{stored}_m{tile}")

    @settings(
        max_examples=5,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(layers(((weight, block, zero),)))
    def check(layer):
        attributes, inputs = layer
        inputs = inputs | {"x": inputs["x"].astype(ELEMENTS[element]).astype(np.float32)}
        found = run_layer(functions, element, tile, attributes, inputs)
        expected = expected_output(attributes, inputs)
        size = np.abs(expected).max(initial=1e-3)
        assert np.abs(found - expected).max(initial=0) <= TOLERANCES[element] * size

    check()
