"""Logits that tell one router from another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moe_export.runners.arrays import Array

_FEW = 12
_RUN = 480
_MAX_NUMBERS = 8
_LARGEST_ORDINARY = 12.0


@dataclass(frozen=True)
class Probes:
    """Rows ``[T, E]``, T a multiple of 12.

    Attributes:
        logits: The rows.
        ordinary: ``[T]``, whether a row is of the size that logits have in models; on the others
            a router may overflow, and rounding costs more.
    """

    logits: Array
    ordinary: Array


def draw_probes(num_experts: int, seed: int) -> Probes:
    """Rows for every regime in which routers differ.

    Ordinary rows: around zero, flat, peaked, shifted, slanted across the experts so that some
    groups stand out, and so flat that a small bias decides. Others: sums of sigmoids down to every
    size that an epsilon has; saturated and one-hot rows; exact ties; tiny positive numbers; zero as
    the largest; some experts at minus infinity.
    """
    random = np.random.default_rng(seed)

    def rows(count: int, scale: float, offset: float = 0.0) -> Array:
        return random.standard_normal((count, num_experts)) * scale + offset

    slant = np.linspace(-1.5, 1.5, num_experts)
    ordinary = [rows(2 * _FEW, 1.0), rows(_FEW, 0.3), rows(_FEW, 3.0), rows(_FEW, 0.02)]
    ordinary += [rows(_FEW, 1.0, 2.5), rows(_FEW, 1.0, -2.5), rows(_FEW, 1.5, -6.0)]
    ordinary += [rows(_FEW // 2, 0.5) + sign * slant for sign in (1, -1)]
    ordinary += [rows(_FEW, 1e-3), random.random((_FEW, num_experts))]
    others = [rows(3, 1.0, offset) for offset in range(-10, -84, -4)]
    others += [rows(4, 1.0, offset) for offset in (10, 18, 30, 60)]
    # Where scores and weights are exactly zero.
    others += [rows(4, 1.0, -130.0), rows(8, 60.0, -100.0)]
    others += [rows(_FEW, 12.0), rows(6, 50.0), rows(2, 3e4), rows(4, 1e-5)]
    others += [random.random((1, num_experts)) * 10.0**-power for power in range(2, 36, 2)]
    others += [np.round(rows(_FEW, 1.0) * 2) / 2, np.zeros((2, num_experts))]
    below = rows(4, 2.0)
    others.append(below - below.max(axis=1, keepdims=True))
    hidden = rows(4, 1.0)
    hidden[:, random.permutation(num_experts)[: num_experts // 3]] = -np.inf
    others.append(hidden)
    drawn = np.concatenate([*ordinary, *others])
    count = sum(map(len, ordinary))
    extra = rows(-len(drawn) % _FEW, 1.0)
    logits = np.concatenate([drawn, extra]).astype(np.float32)
    is_ordinary = np.zeros(len(logits), bool)
    is_ordinary[:count] = True
    order = random.permutation(len(logits))
    return Probes(logits[order], is_ordinary[order])


def draw_crowd(num_experts: int, count: int = 768) -> Probes:
    """Ordinary rows that mostly prefer the same experts."""
    random = np.random.default_rng(2)
    liked = random.standard_normal(num_experts) * 2
    return _ordinary(liked + 0.3 * random.standard_normal((count, num_experts)))


def draw_each_expert(num_experts: int) -> Iterator[Probes]:
    """Ordinary rows that choose every expert at least twice, in runs of bounded size."""
    random = np.random.default_rng(4)
    favored = np.arange(-(-2 * num_experts // _FEW) * _FEW) % num_experts
    for begin in range(0, len(favored), _RUN):
        part = favored[begin : begin + _RUN]
        rows = random.standard_normal((len(part), num_experts))
        rows[np.arange(len(part)), part] += 4.0
        yield _ordinary(rows)


def draw_around(num_experts: int, numbers: Sequence[float], vectors: Sequence[Array]) -> Probes:
    """Rows around the numbers that a router has stored: it may compare logits with them."""
    random = np.random.default_rng(5)
    shape = (_FEW, num_experts)
    parts = [random.standard_normal(shape)]
    for number in [n for n in numbers if 1e-3 < abs(n) < 1e4][:_MAX_NUMBERS]:
        near = number + random.standard_normal(shape)
        rest = random.standard_normal(shape)
        parts += [near, np.where(random.random(shape) < 0.5, near, rest), rest - number]
    parts += [vector + 0.3 * random.standard_normal(shape) for vector in vectors]
    logits = np.concatenate(parts).astype(np.float32)
    return Probes(logits, np.abs(logits).max(axis=1) < _LARGEST_ORDINARY)


def draw_near_ties(logits: Array, last: Array, first_out: Array) -> Probes:
    """Ordinary rows in which an expert left out comes near the last one kept, from both sides.

    Args:
        logits: ``[T, E]``.
        last: ``[T]``, the expert that is kept last in each row.
        first_out: ``[T]``, one that is left out.
    """
    steps = np.array([1e-2, -1e-2, 1e-3, -1e-3, 1e-4, -1e-4], np.float32)
    rows = np.arange(len(logits) // _FEW * _FEW)
    moved = logits[rows].copy()
    moved[rows, first_out[rows]] = moved[rows, last[rows]] + np.resize(steps, len(rows))
    return _ordinary(moved)


def _ordinary(logits: Array) -> Probes:
    return Probes(logits.astype(np.float32), np.ones(len(logits), bool))
