"""Every tolerance of the product, each with its reason, and the error that they bound.

An error is ``relative_error`` unless said otherwise. Everything compared is float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moe_export.runners.arrays import Array

# An activation and two products, rounded in another order: a few units in the last place (6e-8).
INNER_TOLERANCE = 4e-6

# One layer: sums over up to a few thousand products in another order; measured below 3e-6.
LAYER_TOLERANCE = 1e-5

# One expert node against the NumPy reference on the numbers that its stored weights stand for, by
# weight type, on normal inputs; see plugins/README.md for what kernels do with activations. Errors
# that an order of codes, a scale or a zero point gone wrong makes are of the size of the result.
KERNEL_TOLERANCES: Mapping[str, float] = {
    # Activations stay in float32: as above.
    "fp32": LAYER_TOLERANCE,
    "fp16": LAYER_TOLERANCE,
    # Activations are rounded to bfloat16 twice, before each product: 2^-9 relative at most each
    # time, which adds up like a random walk; measured 2e-3 to 6e-3 over shapes and activations.
    "bf16": 2e-2,
    # Activations are rounded to int8 twice, with a scale per token and block: by up to 1/254 of the
    # block's largest, which is about three times a normal input's size and more behind a gate;
    # measured 1e-2, and up to 3.3e-2 on weights with heavy tails.
    "int8": 8e-2,
    "int4": 8e-2,
    "mxfp4": 8e-2,
}

# The GPU's kernels against the reference, of the largest output, by the activations' type: y and
# what lies between the two products are rounded, to 2^-11 or 2^-8 each, which relu2 doubles.
GPU_TOLERANCES: Mapping[str, float] = {"fp32": 2e-5, "fp16": 3e-3, "bf16": 2.5e-2}

# The recorded example on a GPU against eager in float32, relative RMS error of an output: this many
# times what eager in the bundle's type and the rounded weights are off by, since other kernels
# round at other places, and the floor, for what is nearly exact in both.
EXAMPLE_FACTOR = 2.0
EXAMPLE_FLOORS: Mapping[str, float] = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 1.5e-2}

# Where eager does not run in the type, what it is taken to be off by: a few units of its last place
# for every layer of a deep model.
EXAMPLE_RMS_WITHOUT_YARDSTICK: Mapping[str, float] = {"fp16": 1e-2, "bf16": 5e-2}

# Share of the example's tokens that a GPU may send elsewhere beyond those that eager in the
# bundle's type sends elsewhere: near ties fall either way.
EXAMPLE_REROUTED_SHARE = 0.05

# A loop over tokens against its recurrence: chunks take differences of logarithms that were summed
# up, which loses a digit for every tenfold that the sum is; measured below 1e-5.
LOOP_TOLERANCE = 5e-5

# A fused router's weight against that of the operators it replaces, relative to that weight: an
# exponential, a sum and a division in another order, each a few units in the last place.
ROUTER_TOLERANCE = 3e-6

# How much more a fused router's weight may differ where logits are far from zero: an exponent of
# 100 alone carries an error of 4e-6, and spellings round it more than once. A rule that differs,
# as by an epsilon, differs by percents there.
ROUTER_EXTREME_FACTOR = 30.0

# Scores of a router nearer than this, relative to themselves, are equal but for rounding.
ROUTER_TIE_TOLERANCE = 2e-6

# What eager made of a layer's experts against their weighted sum in float64: the same sums as one
# layer's, and on one direction, where they may nearly cancel.
MATCH_TOLERANCE = 2e-5

# Expert weights of one token in the whole model: a softmax of logits that already differ by the
# error of the layers before.
ROUTING_WEIGHT_TOLERANCE = 1e-4

# Selection scores nearer than this (relative to the larger of 1 and the score) are tied: both
# choices are right, since the error of the layers before can order them either way.
TIE_TOLERANCE = 2e-5

# Share of tied tokens on random inputs above which the comparison says nothing.
MAX_TIED_SHARE = 0.01

# A sample alone against the same sample in a batch: kernels choose other blockings, so that this is
# looser than LAYER_TOLERANCE; a real coupling moves outputs by percents.
BATCH_COUPLING_TOLERANCE = 1e-3

_OUTPUT_TOLERANCE = 2e-5


def output_tolerance(num_layers: int) -> float:
    """Tolerance on the whole model's outputs.

    Measured below 2e-5 on models of two MoE layers; rounding errors of layers add up like a random
    walk, with the square root of their number.
    """
    return float(_OUTPUT_TOLERANCE * max(1.0, (num_layers / 2) ** 0.5))


def relative_error(found: Array, expected: Array) -> float:
    """Largest difference over the largest magnitude; infinite when NaNs or shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    if expected.size == 0:
        return 0.0
    if not np.issubdtype(expected.dtype, np.floating):
        return 0.0 if np.array_equal(found, expected) else float("inf")
    if not np.array_equal(np.isfinite(found), np.isfinite(expected)):
        return float("inf")
    finite = np.isfinite(expected)
    if not finite.any():
        return 0.0
    scale = float(np.abs(expected[finite]).max())
    return float(np.abs(found[finite] - expected[finite]).max()) / (scale or 1.0)


def relative_rms(found: Array, expected: Array) -> float:
    """Root of the summed squared differences over that of the squares; else ``relative_error``."""
    if found.shape != expected.shape:
        return float("inf")
    if not np.array_equal(np.isfinite(found), np.isfinite(expected)):
        return float("inf")
    finite = np.isfinite(expected)
    wanted = expected[finite].astype(np.float64)
    scale = float(np.square(wanted).sum())
    return float((np.square(found[finite] - wanted).sum() / (scale or 1.0)) ** 0.5)
