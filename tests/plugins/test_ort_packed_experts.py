"""The packed kernels in ONNX Runtime against the reference, on layers that hypothesis draws."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from moe_export.ops.spec import GroupedExperts
from tests.plugins.drawn_experts import expected_output, layers, packed_inputs
from tests.plugins.one_node import run_node

INSTRUCTION_SETS = ["baseline", "avx2", "avx512", "avx512_bf16", "amx"]
# Float32 sums of some hundred products. The last two sets round tokens: to bfloat16, an error of
# 2^-9 each, or to int8, of 1/254 of the largest of a block; twice, and relu2 doubles it.
FLOAT_TOLERANCE, BF16_TOLERANCE, INT8_TOLERANCE = 2e-5, 3e-2, 0.12


def _tolerance(weight_type, isa):
    if isa not in INSTRUCTION_SETS[3:] or weight_type in ("fp32", "fp16"):
        return FLOAT_TOLERANCE
    return BF16_TOLERANCE if weight_type == "bf16" else INT8_TOLERANCE


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(layer=layers())
def test_every_kernel_agrees_with_the_reference(isa, layer):
    attributes, inputs = layer
    os.environ["MOE_EXPORT_ISA"] = isa
    try:
        packed = replace(attributes, weight_layout="cpu_v1")
        (found,) = run_node("GroupedExperts", packed.to_onnx(), packed_inputs(attributes, inputs))
    finally:
        del os.environ["MOE_EXPORT_ISA"]
    expected = expected_output(attributes, inputs)
    # Relative to the largest value that any part of a sum may have had, at least 1.
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    assert found.shape == expected.shape
    assert (
        np.abs(found - expected).max(initial=0) <= _tolerance(attributes.weight_type, isa) * scale
    )


def test_packed_bytes_of_another_size_are_refused(rng):
    attributes = GroupedExperts(
        num_experts=2, hidden_size=8, intermediate_size=4, weight_layout="cpu_v1"
    )
    inputs = {
        "x": rng.standard_normal((1, 8)).astype(np.float32),
        "expert_ids": np.zeros((1, 1), np.int64),
        "expert_weights": np.ones((1, 1), np.float32),
        "up_weight": np.zeros((2, 8191), np.int8),
        "down_weight": np.zeros((2, 8192), np.int8),
    }
    with pytest.raises(Exception, match=r"experts_c4: up_weight must be \[2, 8192\]; found"):
        run_node("GroupedExperts", attributes.to_onnx(), inputs)
    inputs["up_weight"] = np.zeros((2, 8, 8), np.float32)
    with pytest.raises(Exception, match="up_weight must be int8; found float32"):
        run_node("GroupedExperts", attributes.to_onnx(), inputs)
