"""Arithmetic of the PTX runner against NumPy and against exact numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.ptx import exact
from tests.ptx.one_statement import Case, apply, load_cases

FORMATS = {"f32": exact.F32, "f16": exact.F16, "bf16": exact.BF16}
BITS = {"f32": np.uint32, "f16": np.uint16, "bf16": np.uint16}
EXACT = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fma": lambda a, b, c: a * b + c,
}
ROUNDED = [
    *(
        (op, "f32", rounding)
        for op in ("add", "sub", "mul", "fma")
        for rounding in ("rn", "rz", "rm", "rp")
    ),
    *((op, type_, "rn") for op in ("add", "sub", "mul", "fma") for type_ in ("f16", "bf16")),
    *(("div", "f32", rounding) for rounding in ("rn", "rz", "rp")),
]

INTEGERS = {
    "add.s32": lambda a, b: a + b,
    "add.s16": lambda a, b: a + b,
    "add.s64": lambda a, b: a + b,
    "add.sat.s32": lambda a, b: np.clip(a.astype(object) + b, -(2**31), 2**31 - 1),
    "sub.s32": lambda a, b: a - b,
    "mul.lo.s32": lambda a, b: a * b,
    "mul.lo.u16": lambda a, b: a * b,
    "mul.lo.s64": lambda a, b: a * b,
    "mul.hi.u32": lambda a, b: (a.astype(object) * b) >> 32,
    "mul.hi.s32": lambda a, b: (a.astype(object) * b) >> 32,
    "mul.hi.u64": lambda a, b: (a.astype(object) * b) >> 64,
    "mul.hi.s64": lambda a, b: (a.astype(object) * b) >> 64,
    "min.s32": np.minimum,
    "max.s32": np.maximum,
    "min.u32": np.minimum,
    "max.u64": np.maximum,
    "div.s32": lambda a, b: np.array(
        [int(Fraction(int(x), int(y))) for x, y in zip(a, b, strict=True)]
    ),
    "div.u32": lambda a, b: a // b,
    "rem.s32": lambda a, b: np.fmod(a, b),
    "rem.u64": lambda a, b: a % b,
}


def floats(rng, type_, count=160):
    """Bits of numbers: most near one, some at the ends of the range, some subnormal."""
    form = FORMATS[type_]
    near = rng.integers((form.bias - 4) << form.mantissa, (form.bias + 4) << form.mantissa, count)
    any_ = rng.integers(1, form.infinity, count // 4)
    small = rng.integers(1, 4 << form.mantissa, count // 8)
    bits = np.concatenate([near, any_, small])
    signs = rng.integers(0, 2, len(bits)) << (form.exponent + form.mantissa)
    return rng.permutation(bits | signs).astype(BITS[type_])


@pytest.fixture(scope="module")
def rounded():
    cases = []
    for op, type_, rounding in ROUNDED:
        num_operands = 3 if op == "fma" else 2
        operands = ", ".join(["%a", "%b", "%c"][:num_operands])
        text = f"{op}.{rounding}.{type_} %d, {operands};"
        cases.append(Case(text, type_, (type_,) * num_operands))
    return dict(zip(ROUNDED, zip(load_cases(cases), cases, strict=True), strict=True))


@pytest.mark.parametrize("what", ROUNDED, ids=".".join)
def test_operations_round_the_exact_result(rounded, what):
    op, type_, rounding = what
    kernel, case = rounded[what]
    rng = np.random.default_rng(1)
    operands = [floats(rng, type_) for _ in case.operands]
    form = FORMATS[type_]
    got = apply(kernel, case, *operands)
    num_compared = 0
    for bits, *given in zip(got, *operands, strict=True):
        result = EXACT[op](*(exact.decode(int(each), form) for each in given))
        if result != 0:
            assert int(bits) == exact.encode(result, form, rounding), [hex(each) for each in given]
            num_compared += 1
    assert num_compared > 150


@pytest.fixture(scope="module")
def integers():
    cases = []
    for name in INTEGERS:
        type_ = name.rsplit(".", 1)[1]
        cases.append(Case(f"{name} %d, %a, %b;", type_, (type_, type_)))
    return dict(zip(INTEGERS, zip(load_cases(cases), cases, strict=True), strict=True))


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_wrap_around(integers, name):
    kernel, case = integers[name]
    dtype = np.dtype({"s": "i", "u": "u"}[case.result[0]] + str(int(case.result[1:]) // 8))
    rng = np.random.default_rng(2)
    ends = np.iinfo(dtype)
    values = [rng.integers(ends.min, ends.max, 300, dtype, endpoint=True) for _ in range(2)]
    small = [rng.integers(1, 100, 100).astype(dtype) for _ in range(2)]
    first, second = (np.concatenate(pair) for pair in zip(values, small, strict=True))
    second[second == 0] = 3
    with np.errstate(over="ignore"):
        expected = np.asarray(INTEGERS[name](first, second))
    got = apply(kernel, case, first, second).view(dtype)
    modulus = 2 ** (8 * dtype.itemsize)
    assert [int(e) % modulus for e in expected] == [int(g) % modulus for g in got]


SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3.4e38, 0.3], np.float32
)
PAIRS = np.repeat(SPECIAL, len(SPECIAL)), np.tile(SPECIAL, len(SPECIAL))


def smaller(a, b):
    """The number where there is one; -0 below +0."""
    with np.errstate(invalid="ignore"):
        result = np.fmin(a, b)
    both_zero = (a == 0) & (b == 0)
    return np.where(both_zero, np.where(np.signbit(a), a, b), result)


def smaller_or_nan(a, b):
    return np.where(np.isnan(a) | np.isnan(b), np.nan, smaller(a, b))


FLOATS = {
    "min.f32 %d, %a, %b;": smaller,
    "max.f32 %d, %a, %b;": lambda a, b: -smaller(-a, -b),
    "min.NaN.f32 %d, %a, %b;": smaller_or_nan,
    "max.f32 %d, %a, %b, 0f3F000000;": lambda a, b: np.fmax(-smaller(-a, -b), np.float32(0.5)),
    "add.f32 %d, %a, %b;": np.add,
    "add.ftz.f32 %d, %a, %b;": lambda a, b: flush(flush(a) + flush(b)),
    "mul.ftz.f32 %d, %a, %b;": lambda a, b: flush(flush(a) * flush(b)),
    "add.sat.f32 %d, %a, %b;": lambda a, b: np.nan_to_num(np.clip(a + b, 0, 1), nan=0),
    "div.full.f32 %d, %a, %b;": np.divide,
    "neg.f32 %d, %a; add.f32 %d, %d, %b;": lambda a, b: -a + b,
    "abs.f32 %d, %a; add.f32 %d, %d, %b;": lambda a, b: np.abs(a) + b,
    "ex2.approx.f32 %d, %a; add.f32 %d, %d, %b;": lambda a, b: in_double(np.exp2, a) + b,
    "ex2.approx.ftz.f32 %d, %a; add.f32 %d, %d, %b;": lambda a, b: flushed_exp2(a) + b,
    "rcp.rn.f32 %d, %a; add.f32 %d, %d, %b;": lambda a, b: 1 / a + b,
    "sqrt.rn.f32 %d, %a; add.f32 %d, %d, %b;": lambda a, b: np.sqrt(a) + b,
    "lg2.approx.f32 %d, %a; add.f32 %d, %d, %b;": lambda a, b: in_double(np.log2, a) + b,
    "copysign.f32 %d, %a, %b;": lambda a, b: np.copysign(b, a),
}  # fmt: skip


def flushed_exp2(values):
    return flush(in_double(np.exp2, flush(values)))


def in_double(function, values):
    """Rounded once, from what is all but exact."""
    return function(values.astype(np.float64)).astype(np.float32)


def flush(values):
    """Subnormal numbers as zeros of their sign."""
    tiny = np.abs(values) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), values), values).astype(np.float32)


@pytest.fixture(scope="module")
def special():
    cases = [Case(text, "f32", ("f32", "f32")) for text in FLOATS]
    return dict(zip(FLOATS, zip(load_cases(cases), cases, strict=True), strict=True))


@pytest.mark.parametrize("text", FLOATS)
def test_floats_at_infinity_zero_and_nan(special, text):
    kernel, case = special[text]
    with np.errstate(all="ignore"):
        expected = np.asarray(FLOATS[text](*PAIRS), np.float32)
    got = apply(kernel, case, *PAIRS).view(np.float32)
    np.testing.assert_array_equal(got, expected)
    zeros = expected == 0
    np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(expected[zeros]))


def test_halves_of_pairs_are_apart():
    cases = [
        Case(f"{op}.{type_}x2 %d, %a, %b;", f"{type_}x2", (f"{type_}x2",) * 2)
        for op in ("add", "sub", "mul", "min", "max")
        for type_ in ("f16", "bf16")
    ]
    rng = np.random.default_rng(3)
    singles = [Case(c.text.replace("x2", ""), c.result[:-2], (c.result[:-2],) * 2) for c in cases]
    kernels = load_cases([*cases, *singles])
    for number, (case, single) in enumerate(zip(cases, singles, strict=True)):
        a, b = (floats(rng, single.result) for _ in range(2))
        pairs = apply(kernels[number], case, a.view(np.uint32), b.view(np.uint32))
        alone = apply(kernels[len(cases) + number], single, a, b)
        np.testing.assert_array_equal(pairs.view(np.uint16), alone, case.text)
