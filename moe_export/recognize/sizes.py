"""Numbers that eager computed from its input's shape, found again as functions of the shape.

A recorded operator holds plain numbers: ``view(x, [14, 24])``. Recorded at several shapes, each is
explained as a constant, as a multiple of sizes, or as a capacity: a share of the tokens, rounded.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from moe_export.recognize.hints import Hints

Rounding = Literal["exact", "floor", "ceil"]
_ROUNDINGS: tuple[Rounding, ...] = ("floor", "ceil")
# Experts among which a quota is looked for.
_MOST_EXPERTS = 64
# Tokens of the largest shape that is worth a trial.
_LARGEST_CRITICAL = 4096
# Shapes without which a share of a share would explain anything.
_MANY = 10

# Sizes of the leading axes of the layer's tokens.
Point = tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """``factor · max(low, round(ratio · base) up to a multiple)`` + ``offset``.

    Attributes:
        base: Leading axes and other sizes whose product is the base.
        ratio: Share of the base.
        rounding: How ``ratio · base`` becomes whole.
        multiple: The share is rounded up to a multiple of it.
        low: Smallest share.
        at_most_base: Whether the base bounds the share.
        factor: What the share is multiplied with.
        offset: Added at the end.
    """

    base: tuple[int | Size, ...]
    ratio: Fraction = Fraction(1)
    rounding: Rounding = "exact"
    multiple: int = 1
    low: int | None = None
    at_most_base: bool = False
    factor: int = 1
    offset: int = 0

    def at(self, point: Sequence[Any]) -> Any:  # noqa: ANN401 - an integer, or one of torch's
        """The size at a shape, whose axes may be symbolic."""
        base = _product(self.base, point)
        if self.ratio.denominator == 1:
            value = base * self.ratio.numerator
        else:
            up = self.ratio.denominator - 1 if self.rounding == "ceil" else 0
            value = (base * self.ratio.numerator + up) // self.ratio.denominator
        if self.multiple > 1:
            value = (value + self.multiple - 1) // self.multiple * self.multiple
        if self.low is not None:
            value = _larger(value, self.low)
        if self.at_most_base:
            value = -_larger(-value, -base)
        value = value * self.factor if self.factor != 1 else value
        return value + self.offset if self.offset else value

    def critical_points(self) -> Iterator[Point]:
        """Shapes around which the size jumps, where two explanations of it can differ."""
        jumps = {self.ratio.denominator * self.multiple * n for n in (1, 2, 3)}
        if self.low is not None and self.ratio > 0:
            jumps.add(math.ceil(self.low / self.ratio))
        for base in self.base:
            if isinstance(base, Size):
                yield from base.critical_points()
                continue
            for size in sorted({jump + side for jump in jumps for side in (-1, 0, 1)}):
                if 0 < size <= _LARGEST_CRITICAL:
                    yield (1,) * base + (size,)

    def __str__(self) -> str:
        """For people: ``ceil(1/4 · axis 0)``."""
        base = " · ".join(str(b) if isinstance(b, Size) else f"axis {b}" for b in self.base)
        share = base if self.ratio == 1 else f"{self.ratio} · {base}"
        text = share if self.rounding == "exact" else f"{self.rounding}({share})"
        if self.multiple > 1:
            text += f" to a multiple of {self.multiple}"
        if self.low is not None:
            text += f", at least {self.low}"
        text += ", at most all" if self.at_most_base else ""
        return f"{self.factor} · {text}" if self.factor != 1 else text


@dataclass(frozen=True)
class Quotient:
    """A floating-point number ``factor · base`` or ``factor / base``."""

    base: tuple[int | Size, ...]
    factor: float
    inverse: bool

    def at(self, point: Sequence[Any]) -> Any:  # noqa: ANN401 - see Size
        """The number at a shape."""
        base = _product(self.base, point)
        return self.factor / base if self.inverse else self.factor * base


def _product(base: Sequence[int | Size], point: Sequence[Any]) -> Any:  # noqa: ANN401
    return math.prod(b.at(point) if isinstance(b, Size) else point[b] for b in base)


def _larger(a: Any, b: Any) -> Any:  # noqa: ANN401 - symbolic integers do not branch
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    import torch

    return torch.sym_max(a, b)


def fit_number(
    values: Sequence[float],
    points: Sequence[Point],
    known: Sequence[Size] = (),
    hints: Hints = Hints(),  # noqa: B008 - immutable
) -> Any:  # noqa: ANN401 - a number, a Size, a Quotient or None
    """Explain a number that was seen at several shapes.

    Args:
        values: The number at each shape.
        points: The shapes.
        known: Capacities found before, of which it may be a multiple.
        hints: Which shares are likely.

    Returns:
        The number itself where it is constant, a ``Size`` or ``Quotient``, or None.
    """
    if all(value == values[0] for value in values):
        return values[0]
    if all(isinstance(value, int) for value in values):
        return _fit_whole(tuple(map(int, values)), tuple(points), tuple(known), hints)
    return next(_quotients(values, points, known), None)


@functools.lru_cache(maxsize=4096)
def _fit_whole(
    values: tuple[int, ...], points: tuple[Point, ...], known: tuple[Size, ...], hints: Hints
) -> Size | None:
    sizes = itertools.chain(
        _multiples(values, points, known),
        _shares(values, points, hints),
        _shares_of_quotas(values, points, hints),
    )
    return next(sizes, None)


def _bases(
    points: Sequence[Point], known: Sequence[Size] = ()
) -> Iterator[tuple[tuple[int | Size, ...], list[int]]]:
    """Products of axes, the most first (the tokens are likeliest); then those with capacities."""
    axes = range(len(points[0]))
    extras: list[tuple[Size, ...]] = [(), *((size,) for size in known)]
    for extra in extras:
        for count in range(len(axes), -1 if extra else 0, -1):
            for chosen in itertools.combinations(axes, count):
                base: tuple[int | Size, ...] = (*chosen, *extra)
                yield base, [_product(base, point) for point in points]


def _multiples(
    values: Sequence[Any], points: Sequence[Point], known: Sequence[Size]
) -> Iterator[Size]:
    with_offset = []
    for base, sizes in _bases(points, known):
        first, other = sizes.index(min(sizes)), sizes.index(max(sizes))
        spread = sizes[other] - sizes[first]
        if spread == 0 or (values[other] - values[first]) % spread:
            continue
        factor = (values[other] - values[first]) // spread
        offset = values[first] - factor * sizes[first]
        size = Size(base, Fraction(factor), offset=offset)
        if all(size.at(p) == v for p, v in zip(points, values, strict=True)):
            if offset == 0:
                yield size
            else:
                with_offset.append(size)
    yield from with_offset


def _shares_of_quotas(
    values: Sequence[int], points: Sequence[Point], hints: Hints
) -> Iterator[Size]:
    """Rounded shares of rounded shares of the tokens, as ``int(1.25 · ceil(T / E))``."""
    if len(set(points)) < _MANY:
        return
    for axes, _ in _bases(points):
        for count, rounding in itertools.product(range(2, _MOST_EXPERTS + 1), _ROUNDINGS):
            quota = Size(axes, Fraction(1, count), rounding)
            sizes = [quota.at(point) for point in points]
            for low in (None, min(values)):
                seen = [(v, b) for v, b in zip(values, sizes, strict=True) if b > 0 and v != low]
                ratio = _common_ratio(seen, "floor", 1, hints)
                size = None if ratio is None else Size((quota,), ratio, "floor", low=low)
                if size is not None and all(
                    size.at(p) == v for p, v in zip(points, values, strict=True)
                ):
                    yield size


def _shares(values: Sequence[Any], points: Sequence[Point], hints: Hints) -> Iterator[Size]:
    bases = list(_bases(points))
    found: list[Size] = []
    variants = {(offset, math.gcd(*(v - offset for v in values)) or 1) for offset in (0, 1)}
    for offset, factor in itertools.chain(((0, 1), (1, 1)), sorted(variants)):
        shares = [(value - offset) // factor for value in values]
        options = itertools.product(
            bases, (None, min(shares)), (False, True), (1, 4, 8), _ROUNDINGS
        )
        for (base, sizes), low, capped, multiple, rounding in options:
            free = [
                (v, b)
                for v, b in zip(shares, sizes, strict=True)
                if b > 0 and not (v == low or (capped and v == b))
            ]
            ratio = _common_ratio(free, rounding, multiple, hints)
            if ratio is None:
                continue
            size = Size(base, ratio, rounding, multiple, low, capped, factor, offset)
            if all(size.at(p) == v for p, v in zip(points, values, strict=True)):
                found.append(size)
    yield from sorted(found, key=lambda size: _complexity(size, hints))


def _complexity(size: Size, hints: Hints) -> int:
    """What it takes to say a size: the plainest that fits is the likeliest."""
    extras = (size.low is not None) + size.at_most_base + (size.multiple > 1) + 2 * size.offset
    return hints.effort(size.ratio) + 2 * extras


def _common_ratio(
    seen: Sequence[tuple[int, int]], rounding: Rounding, multiple: int, hints: Hints
) -> Fraction | None:
    """The likeliest, else the simplest ratio that rounds to every value."""
    low, high = Fraction(0), Fraction(1 << 20)
    for value, base in seen:
        first = value - multiple + 1
        below = Fraction(first if rounding == "floor" else first - 1, base)
        above = Fraction(value + 1 if rounding == "floor" else value, base)
        low, high = max(low, below), min(high, above)
    if len(seen) < 2 or low >= high:
        return None
    likely = hints.between(low, high, closed_above=rounding == "ceil")
    if likely is not None:
        return likely
    for denominator in range(1, 1025):
        numerator = math.ceil(low * denominator)
        if rounding == "ceil" and Fraction(numerator, denominator) == low:
            numerator += 1
        ratio = Fraction(numerator, denominator)
        if ratio < high or (rounding == "ceil" and ratio == high):
            return ratio
    return None


def _quotients(
    values: Sequence[float], points: Sequence[Point], known: Sequence[Size]
) -> Iterator[Quotient]:
    for base, sizes in _bases(points, known):
        for inverse in (False, True):
            factors = [v * b if inverse else v / b for v, b in zip(values, sizes, strict=True)]
            if all(math.isclose(f, factors[0], rel_tol=1e-12) for f in factors):
                yield Quotient(base, factors[0], inverse)
