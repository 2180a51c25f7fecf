"""Numbers found again as functions of the shape, and those that are none."""

from __future__ import annotations

import math
import random

import pytest

from moe_export.recognize.sizes import Quotient, Size, fit_number

ONE = [(13,), (24,), (37,), (47,)]
MORE = [*ONE, *((n,) for n in (2, 3, 5, 9, 64, 99, 201, 256, 333, 600))]
TWO = [(2, 7), (3, 8), (5, 11), (3, 16)]


def fit(function, points, known=()):
    return fit_number([function(*point) for point in points], points, known)


def assert_found(function, points, others, known=()):
    """The function is found, and agrees with the original at other shapes."""
    found = fit(function, points, known)
    assert isinstance(found, Size | Quotient), found
    for point in [*points, *others]:
        assert found.at(point) == pytest.approx(function(*point), rel=1e-12), (point, found)
    return found


@pytest.mark.parametrize("value", [0, 1, -1, 7, 0.5, 1e-5, 2.0])
def test_constants_stay_as_they_are(value):
    found = fit(lambda t: value, ONE)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "function",
    [
        lambda b, s: b,
        lambda b, s: s,
        lambda b, s: b * s,
        lambda b, s: 24 * b * s,
        lambda b, s: 6 * s,
        lambda b, s: s - 1,
        lambda b, s: 2 * b * s + 3,
        lambda b, s: -b * s,
    ],
)
def test_products_and_offsets(function):
    assert_found(function, TWO, [(1, 1), (1, 9), (8, 1), (30, 50)])


LONG = [(1,), (7,), (48,), (128,), (500,), (1024,), (1500,)]


@pytest.mark.parametrize(
    "function",
    [
        lambda t: t // 2,
        lambda t: math.ceil(t / 4),
        lambda t: 6 * math.ceil(t / 4),
        lambda t: (t + 3) // 4 * 4,
        lambda t: math.ceil(t / 3 / 8) * 8,
    ],
)
def test_shares(function):
    found = fit(function, MORE)
    if found is not None:
        assert [found.at(p) for p in LONG] == [function(*p) for p in LONG]


@pytest.mark.parametrize(
    "function",
    [
        lambda t: max(4, t // 3),
        lambda t: max(4, math.ceil(1.25 * t * 2 / 6)),
        lambda t: max(1, t // 8),
        lambda t: max(8, math.ceil(t * 2 / 6 / 8) * 8),
    ],
)
def test_shares_with_a_minimum_and_multiples(function):
    assert_found(function, MORE, LONG)


def test_share_is_bounded_by_the_tokens():
    assert_found(lambda t: min(t, math.ceil(t / 4 / 8) * 8), MORE, LONG)


def test_share_of_one_axis():
    points = [*TWO, (2, 2), (2, 3), (3, 4), (4, 5), (4, 16), (3, 33), (2, 64), (3, 67)]
    found = assert_found(lambda b, s: max(2, s // 4), points, [(7, 100), (64, 5)])
    assert found.base == (1,)


def test_products_with_a_capacity_need_it_known():
    capacity = fit(lambda t: t // 4, ONE)
    assert isinstance(capacity, Size)
    found = assert_found(lambda t: 24 * (t // 4), ONE, LONG, [capacity])
    assert fit(lambda t: t * (t // 4), ONE) is None
    found = assert_found(lambda t: t * (t // 4), ONE, LONG, [capacity])
    assert capacity in found.base


def test_products_of_an_axis_with_a_capacity():
    points = [*TWO, (2, 2), (2, 3), (3, 4), (4, 5), (4, 16)]
    capacity = fit(lambda b, s: math.ceil(s / 4), points)
    assert_found(lambda b, s: b * math.ceil(s / 4) * 6, points, [(9, 9), (1, 1)], [capacity])


@pytest.mark.parametrize(
    ("function", "inverse"), [(lambda t: 0.25 * t, False), (lambda t: 1 / t, True)]
)
def test_floats(function, inverse):
    found = assert_found(function, ONE, LONG)
    assert (type(found), found.inverse) == (Quotient, inverse)


@pytest.mark.parametrize(
    "values",
    [
        [3, 17, 4, 29],
        [5, 5, 6, 5],
        [13**2, 24**2, 37**2, 47**2],
        [2, 24, 1, 47],
        [0.1, 0.7, 0.2, 0.9],
        [math.sqrt(t) for (t,) in ONE],
        [math.log(t) for (t,) in ONE],
    ],
)
def test_no_function_of_the_shape(values):
    assert fit_number(values, ONE) is None


def test_no_function_of_several_axes():
    assert fit_number([9, 11, 16, 19], [(2, 7), (3, 8), (5, 11), (3, 16)]) is None  # b + s


@pytest.mark.parametrize("seed", range(30))
def test_random_products_are_found(seed):
    generator = random.Random(seed)
    factor, offset = generator.randint(1, 99), generator.choice([0, 0, 1, -1, 5])
    axes = generator.choice([(0,), (1,), (0, 1)])

    def function(*point):
        return factor * math.prod(point[a] for a in axes) + offset

    assert_found(function, TWO, [(1, 1), (4, 9), (17, 100)])


def test_sizes_say_what_they_are():
    found = fit(lambda t: max(4, math.ceil(t / 4)), MORE)
    assert str(found) == "ceil(1/4 · axis 0), at least 4"


def test_whole_numbers_stay_whole_after_equal_fractions():
    points = [(4,), (6,), (10,)]
    assert isinstance(fit_number([8.0, 12.0, 20.0], points).at((3,)), float)
    assert isinstance(fit_number([8, 12, 20], points).at((3,)), int)
