"""Inputs of the parity sweep: other shapes than the example's, and padded masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from moe_export.plan import AxisSpec
from moe_export.runners.arrays import Array

# Sizes of (first symbolic axis, further ones): one token, an odd count, a small batch, many.
# 83 is more than a chunk of linear attention, and no multiple of one.
_PAIRS = ((1, 1), (1, 7), (3, 5), (2, 83))
_SINGLES = (1, 7, 33, 256)


@dataclass(frozen=True)
class InputShape:
    """One input of the graph: symbolic sizes by name, an example, and its valid integers."""

    name: str
    sizes: tuple[int | str, ...]
    example: Array
    num_values: int | None = None


@dataclass(frozen=True)
class Case:
    """Inputs of one comparison.

    Attributes:
        name: What is special about it.
        inputs: By name.
        attended: ``[B, S]`` bool, positions that an attention mask keeps; None without a mask.
    """

    name: str
    inputs: Mapping[str, Array]
    attended: Array | None = None


@dataclass(frozen=True)
class CaseShape:
    """A case before its values are drawn: the size of each symbol, and the side that is padded."""

    name: str
    sizes: Mapping[str, int]
    padded: str | None = None


class Sweep:
    """Draws the cases of one model.

    Args:
        inputs: The graph's inputs.
        ranges: Axes with a range that sizes must stay within.
        seed: Seeds every draw.
    """

    def __init__(
        self, inputs: tuple[InputShape, ...], ranges: tuple[AxisSpec, ...], seed: int
    ) -> None:
        self._inputs, self._ranges = inputs, ranges
        self._random = np.random.default_rng(seed)

    def shapes(self) -> Iterator[CaseShape]:
        """The cases of the sweep."""
        symbols = list(
            dict.fromkeys(s for i in self._inputs for s in i.sizes if isinstance(s, str))
        )
        if not symbols:
            yield CaseShape("example shape", {})
            return
        rows = [(s,) for s in _SINGLES] if len(symbols) == 1 else list(_PAIRS)
        for row in rows:
            # A third axis, such as a decoder's length, is not as long as the second by chance.
            apart = [*row, *(row[-1] + 1 + i for i in range(len(symbols)))]
            sizes = {s: self._within(s, size) for s, size in zip(symbols, apart, strict=False)}
            label = ", ".join(f"{name} {size}" for name, size in sizes.items())
            yield CaseShape(label, sizes)
            if any(_is_mask(i) for i in self._inputs) and row == (3, 5):
                yield CaseShape(f"{label}, padded right", sizes, "right")
                yield CaseShape(f"{label}, padded left", sizes, "left")

    def _within(self, symbol: str, size: int) -> int:
        """``size`` moved into the range that the user gave for an axis of this symbol."""
        by_name = {i.name: i for i in self._inputs}
        for spec in self._ranges:
            sizes = by_name[spec.name].sizes if spec.name in by_name else ()
            if spec.axis < len(sizes) and sizes[spec.axis] == symbol:
                size = max(spec.minimum or 1, min(size, spec.maximum or size))
        return size

    def draw(self, case: CaseShape) -> Case:
        """Draw one case anew."""
        arrays, attended = {}, None
        for item in self._inputs:
            shape = tuple(case.sizes[s] if isinstance(s, str) else s for s in item.sizes)
            if _is_mask(item):
                arrays[item.name] = _mask(shape, case.padded).astype(item.example.dtype)
                attended = arrays[item.name].astype(bool) if len(shape) == 2 else attended
            else:
                arrays[item.name] = self._values(item, shape)
        return Case(case.name, arrays, attended)

    def _values(self, item: InputShape, shape: tuple[int, ...]) -> Array:
        example = item.example
        if np.issubdtype(example.dtype, np.floating):
            spread = float(example.std()) or 1.0
            drawn = self._random.standard_normal(shape) * spread + float(example.mean())
            return drawn.astype(example.dtype)
        if item.num_values is not None:
            return self._random.integers(0, item.num_values, shape).astype(example.dtype)
        # Which integers are valid is not known: use those of the example.
        return self._random.choice(example.reshape(-1), shape).astype(example.dtype)


def _is_mask(item: InputShape) -> bool:
    return "mask" in item.name and not np.issubdtype(item.example.dtype, np.floating)


def _mask(shape: tuple[int, ...], padded: str | None) -> Array:
    """Ones; with padding, row r loses r positions on that side, at least one position stays."""
    mask = np.ones(shape, np.int64)
    for row in range(shape[0] if padded else 0):
        lost = min(row, shape[-1] - 1)
        if lost:
            mask[row, slice(None, lost) if padded == "left" else slice(-lost, None)] = 0
    return mask
