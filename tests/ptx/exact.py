"""Rounding of exact numbers, the slow and plain way."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Format:
    """A binary floating-point format with infinities.

    Attributes:
        exponent: Bits of the exponent.
        mantissa: Bits of the mantissa that are stored.
    """

    exponent: int
    mantissa: int

    @property
    def bias(self) -> int:
        return (1 << self.exponent - 1) - 1

    @property
    def infinity(self) -> int:
        return ((1 << self.exponent) - 1) << self.mantissa


F32 = Format(8, 23)
F16 = Format(5, 10)
BF16 = Format(8, 7)


def power_of_two(exponent: int) -> Fraction:
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)


def decode(bits: int, form: Format) -> Fraction:
    """What the bits of a finite number stand for."""
    sign = -1 if bits >> (form.exponent + form.mantissa) & 1 else 1
    exponent = bits >> form.mantissa & ((1 << form.exponent) - 1)
    mantissa = bits & ((1 << form.mantissa) - 1)
    if exponent > 0:
        mantissa += 1 << form.mantissa
    return sign * mantissa * power_of_two(max(exponent, 1) - form.bias - form.mantissa)


def encode(value: Fraction, form: Format, rounding: str = "rn") -> int:
    """The bits of the number that ``value``, which is not zero, is rounded to.

    Args:
        value: Any number but zero, whose sign would be open.
        form: What to round to.
        rounding: ``rn``, ``rz``, ``rm``, ``rp``, or ``rna`` for ties away from zero.
    """
    negative, magnitude = value < 0, abs(value)
    low, high = 0, form.infinity
    while high - low > 1:  # the largest number that is not above
        middle = (low + high) // 2
        low, high = (middle, high) if decode(middle, form) <= magnitude else (low, middle)
    below = decode(low, form)
    above = power_of_two(form.bias + 1) if high == form.infinity else decode(high, form)
    up = {"rz": False, "rm": negative, "rp": not negative}.get(rounding)
    if up is None:
        middle_value = (below + above) / 2
        up = magnitude > middle_value
        if magnitude == middle_value:
            up = rounding == "rna" or low % 2 == 1
    up = bool(up and magnitude != below)
    sign = int(negative) << (form.exponent + form.mantissa)
    return sign | (high if up else low)


def is_finite(bits: NDArray[np.uint32], form: Format) -> NDArray[np.bool_]:
    """Which bits are those of a number."""
    finite: NDArray[np.bool_] = (bits & np.uint32(form.infinity)) != form.infinity
    return finite
