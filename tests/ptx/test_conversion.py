"""``cvt`` of the PTX runner against NumPy and against exact numbers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx import exact
from tests.ptx.one_statement import Case, apply, load_cases

SPECIAL = [0.0, -0.0, 0.5, 1.5, -2.5, 127.6, -129.0, 255.5, 4e9, -4e9, 1e20, np.inf, -np.inf]
NUMBERS = np.array([*SPECIAL, np.nan, 1e-40, 65519.9, 65520.0, 3e-8, 448.0, 500.0], np.float32)


def whole(round_, low, high):
    def convert(values):
        rounded = np.nan_to_num(round_(values.astype(np.float64)), nan=0, posinf=1e30, neginf=-1e30)
        return np.array([int(min(max(value, low), high)) for value in rounded])

    return convert


INTEGERS = np.array([0, 1, -1, 127, 128, -129, 255, 256, 32768, 16777217, -(2**31), 2**31 - 1])

TO_INTEGERS = {
    "cvt.rzi.s32.f32": (whole(np.trunc, -(2**31), 2**31 - 1), "b32", np.int32),
    "cvt.rni.s32.f32": (whole(np.rint, -(2**31), 2**31 - 1), "b32", np.int32),
    "cvt.rmi.s32.f32": (whole(np.floor, -(2**31), 2**31 - 1), "b32", np.int32),
    "cvt.rpi.u32.f32": (whole(np.ceil, 0, 2**32 - 1), "b32", np.uint32),
    "cvt.rzi.s64.f32": (whole(np.trunc, -(2**63), 2**63 - 1), "b64", np.int64),
    "cvt.rni.u8.f32": (whole(np.rint, 0, 255), "b32", np.uint32),
    "cvt.rni.s8.f32": (whole(np.rint, -128, 127), "b32", np.int32),
}
FROM_INTEGERS = {
    "cvt.s8.s32": ("b32", lambda v: v.astype(np.int8).astype(np.int32)),
    "cvt.u8.u32": ("b32", lambda v: v.astype(np.uint8).astype(np.int32)),
    "cvt.s64.s32": ("b64", lambda v: v.astype(np.int64)),
    "cvt.u64.u32": ("b64", lambda v: v.astype(np.uint32).astype(np.int64)),
    "cvt.u16.u32": ("b16", lambda v: v.astype(np.int16)),
    "cvt.sat.s8.s32": ("b32", lambda v: np.clip(v, -128, 127).astype(np.int32)),
    "cvt.sat.u8.s32": ("b32", lambda v: np.clip(v, 0, 255).astype(np.int32)),
    "cvt.rn.f32.s32": ("b32", lambda v: v.astype(np.float32).view(np.int32)),
    "cvt.rn.f32.u32": ("b32", lambda v: v.astype(np.uint32).astype(np.float32).view(np.int32)),
    "cvt.rn.f16.s32": ("b16", lambda v: v.astype(np.float16).view(np.int16)),
}


def load(texts):
    cases = dict(texts)
    kernels = load_cases(list(cases.values()))
    return {
        name: (kernel, case) for (name, case), kernel in zip(cases.items(), kernels, strict=True)
    }


@pytest.fixture(scope="module")
def integers():
    to = {name: Case(f"{name} %d, %a;", to, ("b32",)) for name, (_, to, _) in TO_INTEGERS.items()}
    from_ = {name: Case(f"{name} %d, %a;", to, ("b32",)) for name, (to, _) in FROM_INTEGERS.items()}
    return load(to | from_)


@pytest.mark.parametrize("name", TO_INTEGERS)
def test_floats_to_integers_saturate(integers, name):
    convert, _, dtype = TO_INTEGERS[name]
    got = apply(*integers[name], NUMBERS)
    np.testing.assert_array_equal(got.view(dtype), convert(NUMBERS).astype(dtype))


@pytest.mark.parametrize("name", FROM_INTEGERS)
def test_integers_to_others(integers, name):
    with np.errstate(over="ignore"):
        expected = FROM_INTEGERS[name][1](INTEGERS.astype(np.int32))
    got = apply(*integers[name], INTEGERS.astype(np.int32))
    np.testing.assert_array_equal(got.view(expected.dtype), expected)


# Floats to floats of fewer bits: type, rounding, the format, and bits below its last one.
NARROW = {
    "cvt.rn.f16.f32": ("b16", exact.F16, "rn", 0),
    "cvt.rz.f16.f32": ("b16", exact.F16, "rz", 0),
    "cvt.rn.bf16.f32": ("b16", exact.BF16, "rn", 0),
    "cvt.rz.bf16.f32": ("b16", exact.BF16, "rz", 0),
    "cvt.rna.tf32.f32": ("b32", exact.Format(8, 10), "rna", 13),
    "cvt.rn.tf32.f32": ("b32", exact.Format(8, 10), "rn", 13),
}


@pytest.fixture(scope="module")
def narrow():
    return load({name: Case(f"{name} %d, %a;", to, ("b32",)) for name, (to, *_) in NARROW.items()})


def floats(form):
    """Finite floats: random ones, and those beside and between two numbers of a format."""
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 200, np.uint32)
    step = 1 << (23 - form.mantissa)
    ties = (rng.integers(0x3C000000, 0x44000000, 60, np.uint32) & ~np.uint32(step - 1)) | step // 2
    bits = np.concatenate([bits, ties, ties + np.uint32(1), ties - np.uint32(1)])
    return bits[exact.is_finite(bits, exact.F32) & (bits & 0x7FFFFFFF != 0)]


@pytest.mark.parametrize("name", NARROW)
def test_floats_round_to_fewer_bits(narrow, name):
    _, form, rounding, shift = NARROW[name]
    bits = floats(form)
    got = apply(*narrow[name], bits)
    expected = [
        exact.encode(exact.decode(int(b), exact.F32), form, rounding) << shift for b in bits
    ]
    assert [int(g) for g in got] == expected


def test_pairs_have_the_first_operand_above():
    case = Case("cvt.rn.bf16x2.f32 %d, %a, %b;", "b32", ("b32", "b32"))
    got = apply(load_cases([case])[0], case, *np.float32([[1.0, -2.0], [0.5, np.inf]]))
    assert [hex(each) for each in got] == ["0x3f803f00", "0xc0007f80"]


def e4m3_values():
    """Every number of e4m3: sign, four bits of exponent, three of mantissa, no infinity."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    return np.where(bits & 128, -values, values), (bits & 127) == 127


def test_bytes_to_pairs_are_exact():
    case = Case("cvt.rn.f16x2.e4m3x2 %d, %a;", "b32", ("b16",))
    values, is_nan = e4m3_values()
    bytes_ = np.arange(256, dtype=np.uint16)
    got = apply(load_cases([case])[0], case, bytes_ | bytes_[::-1] << 8).view(np.float16)
    for half, order in ((got[::2], slice(None)), (got[1::2], slice(None, None, -1))):
        np.testing.assert_array_equal(np.isnan(half), is_nan[order])
        np.testing.assert_array_equal(half[~is_nan[order]], values[order][~is_nan[order]])


def test_floats_to_bytes_take_the_nearest_and_stay_finite():
    case = Case("cvt.rn.satfinite.e4m3x2.f32 %d, %a, %b;", "b16", ("b32", "b32"))
    values, is_nan = e4m3_values()
    rng = np.random.default_rng(2)
    given = np.concatenate(
        [rng.uniform(-500, 500, 200), rng.uniform(-0.02, 0.02, 50), [1e9, -np.inf]]
    )
    given = given.astype(np.float32)
    got = apply(load_cases([case])[0], case, given, np.zeros_like(given)) >> 8
    numbers = values[~is_nan]
    nearest = np.abs(np.clip(given, -448, 448)[:, None] - numbers).min(1)
    np.testing.assert_allclose(np.abs(np.clip(given, -448, 448) - values[got]), nearest, atol=1e-7)


def test_rounding_to_whole_floats_keeps_zero_signs():
    case = Case("cvt.rni.f32.f32 %d, %a;", "b32", ("b32",))
    got = apply(load_cases([case])[0], case, NUMBERS).view(np.float32)
    np.testing.assert_array_equal(got, np.rint(NUMBERS))
    np.testing.assert_array_equal(np.signbit(got), np.signbit(NUMBERS))
