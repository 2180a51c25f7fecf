"""Weights of few bits, one scale per block of a row, for the peers that have no quantizer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moe_bench.layers import Floats


def quantize_blocks(weight: Floats, block: int, bits: int) -> tuple[NDArray[np.int8], Floats]:
    """Round a matrix to signed codes of ``bits`` bits, symmetric about zero.

    Args:
        weight: ``[N, K]``.
        block: Weights of a row that share a scale; divides K.
        bits: 4 or 8.

    Returns:
        Codes ``[N, K]`` in ``[-(2^(bits-1) - 1), 2^(bits-1) - 1]`` and scales ``[N, K/block]``.
    """
    blocks = weight.reshape(len(weight), -1, block)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
    codes = np.rint(blocks / scale).astype(np.int8)
    return codes.reshape(weight.shape), scale[..., 0]
