"""Numbers of a layer's own from which its capacities are likely made, as ``1.25 / num_experts``.

A capacity that is seen at a few shapes has many explanations; the likeliest is made of a factor and
a count that the layer holds.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torch import nn

# Factors that are likely whether the layer holds them or not: whole, in quarters, in tenths.
_GRID = tuple(sorted({Fraction(n, d) for d in (1, 4, 10) for n in range(1, 4 * d + 1)}))
_MOST_NUMBERS = 48
_LARGEST_COUNT, _LARGEST_FACTOR, _MOST_CHOICES = 1 << 16, 64, 16


@dataclass(frozen=True)
class Hints:
    """Ratios that are likely.

    Attributes:
        ratios: In ascending order, each with what it takes to say it.
    """

    ratios: tuple[tuple[Fraction, int], ...] = ()
    _effort: Mapping[Fraction, int] = field(default_factory=dict, compare=False)

    def effort(self, ratio: Fraction) -> int:
        """What it takes to say a ratio."""
        return self._effort.get(ratio, ratio.numerator + ratio.denominator)

    def between(self, low: Fraction, high: Fraction, *, closed_above: bool) -> Fraction | None:
        """The likeliest ratio in ``[low, high)``, or in ``(low, high]`` if ``closed_above``."""
        find = bisect.bisect_right if closed_above else bisect.bisect_left
        first, last = (find(self.ratios, bound, key=lambda r: r[0]) for bound in (low, high))
        inside = self.ratios[first:last]
        return min(inside, key=lambda r: r[1])[0] if inside else None


def hints_of(module: nn.Module) -> Hints:
    """The hints that the attributes of a layer, and of the modules in it, hold."""
    numbers = list(itertools.islice(dict.fromkeys(_numbers(module)), 4 * _MOST_NUMBERS))
    factors = [Fraction(str(n)) for n in numbers if isinstance(n, float)]
    own = {f for f in factors[:_MOST_NUMBERS] if 0 < f <= _LARGEST_FACTOR}
    counts = [n for n in numbers if isinstance(n, int) and 1 < n <= _LARGEST_COUNT]
    counts = counts[:_MOST_NUMBERS]
    return _hints(frozenset(own), tuple(sorted(counts)))


@functools.lru_cache(maxsize=64)
def _hints(factors: frozenset[Fraction], counts: tuple[int, ...]) -> Hints:
    effort: dict[Fraction, int] = {}
    said = {factor: factor.numerator + factor.denominator for factor in _GRID}
    said |= dict.fromkeys(factors, 2) | {Fraction(1): 1}
    choices = [1, *(n for n in counts if n <= _MOST_CHOICES)]
    for (factor, price), count, k in itertools.product(said.items(), counts, choices):
        ratio = factor * k / count
        whole = price + 1 + (k > 1)
        effort[ratio] = min(effort.get(ratio, whole), whole)
    return Hints(tuple(sorted(effort.items())), effort)


def _numbers(module: nn.Module) -> Iterator[float]:
    for part in module.modules():
        if isinstance(part, nn.ModuleList | nn.ParameterList | nn.ModuleDict | nn.ParameterDict):
            yield len(part)
        for value in list(vars(part).values()):
            yield from _plain(value)
            yield from _plain_values(value)
        for parameter in part.parameters(recurse=False):
            if parameter.dim() == 3:
                yield int(parameter.shape[0])


def _plain(value: Any) -> Iterator[float]:  # noqa: ANN401 - any attribute
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        yield value


def _plain_values(value: Any) -> Iterator[float]:  # noqa: ANN401 - any attribute
    """Numbers one level down, of a configuration."""
    if isinstance(value, nn.Module) or callable(value):
        return
    inner = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    for number in inner.values():
        yield from _plain(number)
