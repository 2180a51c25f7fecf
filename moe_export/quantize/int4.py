"""Codes of 4 bits in blocks that share a scale, and a zero point where asked for.

Several ranges are tried for every block. Codes that are given, the best scale follows by least
squares, s = <w, q> / <q, q>, and leaves the squared error <w, w> - <w, q>² / <q, q>: the range with
the largest <w, q>² / <q, q> is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.ops.dequantize import SYMMETRIC_ZERO

Array = NDArray[Any]
Float = NDArray[np.float32]

_LARGEST_CODE = 15
# The value of largest magnitude falls on this many steps from zero: -8 is the last code, so that 8
# and less use its side fully, and more cut it off, which wide blocks gain from.
_SYMMETRIC_STEPS = (7.0, 7.5, 8.0, 8.5, 9.25)
# Shares of a block's range that the codes span.
_RANGE_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)
# Rows that are worked on at once: their temporaries stay in a core's cache.
_ROWS_AT_ONCE = 64


def quantize_int4(matrix: Float, block_size: int, *, zero_points: bool) -> dict[str, Array]:
    """Round a matrix to the contract's int4.

    Args:
        matrix: ``[N, K]``, finite.
        block_size: Columns that share a scale.
        zero_points: Give every block a zero point; without it zero is code 8.

    Returns:
        ``weight`` ``[N, ceil(K / 2)]`` int8, ``scale`` ``[N, ceil(K / block_size)]`` float32 and,
        with ``zero_points``, ``zero`` in the scale's shape, int8.
    """
    rows, columns = matrix.shape
    num_blocks = -(-columns // block_size)
    codes = np.empty((rows, columns), np.uint8)
    scale = np.empty((rows, num_blocks), np.float32)
    zero = np.full((rows, num_blocks), SYMMETRIC_ZERO, np.int8)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        filled = np.pad(matrix[part], ((0, 0), (0, num_blocks * block_size - columns)))
        blocks = filled.reshape(-1, num_blocks, block_size)
        find = _best_asymmetric if zero_points else _best_symmetric
        steps, zero[part], scale[part] = find(blocks)
        found = (steps + zero[part][..., None]).reshape(len(filled), -1)
        codes[part] = found[:, :columns]
    parts: dict[str, Array] = {"weight": pack_nibbles(codes), "scale": scale}
    return parts | ({"zero": zero} if zero_points else {})


def pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Bytes ``[..., ceil(K / 2)]`` of codes ``[..., K]`` in 0..15, the even column's half first."""
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    return (codes[..., ::2] | codes[..., 1::2] << 4).view(np.int8)


def _best_symmetric(blocks: Float) -> tuple[Float, Array, Float]:
    """Signed steps ``[N, B, block]``, zero points and scales ``[N, B]`` without zero points."""
    places = np.abs(blocks).argmax(axis=-1)[..., None]
    extreme = np.take_along_axis(blocks, places, axis=-1)
    best = _Best(blocks, np.full(blocks.shape[:2], SYMMETRIC_ZERO, np.int8))
    for steps in _SYMMETRIC_STEPS:
        # The extreme is given the side that has a code more, whatever its sign is.
        factor = np.divide(-steps, extreme, out=np.zeros_like(extreme), where=extreme != 0)
        rounded = np.rint(blocks * factor)
        best.offer(np.clip(rounded, -SYMMETRIC_ZERO, _LARGEST_CODE - SYMMETRIC_ZERO))
    return best.steps, best.zero, best.scale


def _best_asymmetric(blocks: Float) -> tuple[Float, Array, Float]:
    """Signed steps, zero points and scales with zero points; zero is always a code's value."""
    low = np.minimum(blocks.min(axis=-1, keepdims=True), 0)
    high = np.maximum(blocks.max(axis=-1, keepdims=True), 0)
    width = high - low
    per_width = np.divide(_LARGEST_CODE, width, out=np.zeros_like(width), where=width != 0)
    zero = np.rint(-low * per_width)
    best = _Best(blocks, zero[..., 0].astype(np.int8))
    for share in _RANGE_SHARES:
        rounded = np.rint(blocks * (per_width / np.float32(share)))
        best.offer(np.clip(rounded, -zero, _LARGEST_CODE - zero))
    return best.steps, best.zero, best.scale


class _Best:
    """The steps seen so far that explain each block best, with their scales."""

    def __init__(self, blocks: Float, zero: Array) -> None:
        self._blocks, self.zero = blocks, zero
        self.steps = np.zeros_like(blocks)
        self.scale = np.zeros(blocks.shape[:2], np.float32)
        self._explained = np.zeros(blocks.shape[:2], np.float32)

    def offer(self, steps: Float) -> None:
        """Keep ``steps`` for the blocks that they explain better."""
        along = np.einsum("nbk,nbk->nb", self._blocks, steps)
        length = np.einsum("nbk,nbk->nb", steps, steps)
        scale = np.divide(along, length, out=np.zeros_like(along), where=length != 0)
        explained = along * scale
        better = explained > self._explained
        self.steps[better] = steps[better]
        self.scale[better] = scale[better]
        self._explained[better] = explained[better]
