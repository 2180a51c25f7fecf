"""Bits, comparisons and moves of the PTX runner."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx.one_statement import Case, apply, load_cases

RNG = np.random.default_rng(1)
A, B, C = (RNG.integers(0, 2**32, 200, np.uint32) for _ in range(3))
SMALL = RNG.integers(0, 40, 200).astype(np.uint32)
LENGTH = RNG.integers(0, 36, 200).astype(np.uint32)


def field(a, position, length, signed):
    """Bits of ``a`` as PTX says it, bit by bit."""
    if length == 0:
        return 0
    last = min(position + length - 1, 31)
    fill = (int(a) >> last & 1) if signed else 0
    bits = [
        int(a) >> (position + i) & 1 if i < length and position + i < 32 else fill
        for i in range(32)
    ]
    return sum(bit << i for i, bit in enumerate(bits))


def insert(a, b, position, length):
    for i in range(length):
        if position + i < 32:
            b = b & ~(1 << (position + i)) | (a >> i & 1) << (position + i)
    return b


def permute(a, b, selector):
    data = int(a).to_bytes(4, "little") + int(b).to_bytes(4, "little")
    result = []
    for i in range(4):
        nibble = int(selector) >> 4 * i & 15
        byte = data[nibble & 7]
        result.append((0xFF if byte & 0x80 else 0) if nibble & 8 else byte)
    return int.from_bytes(bytes(result), "little")


def by_element(function):
    return lambda *operands: np.array(
        [function(*map(int, each)) for each in zip(*operands, strict=True)], np.uint64
    )


def named_permute(mode):
    """What each mode gives of bytes b7 .. b0, as the PTX manual tables it."""
    tables = {
        "f4e": ["3210", "4321", "5432", "6543"],
        "b4e": ["5670", "6701", "7012", "0123"],
        "rc8": ["0000", "1111", "2222", "3333"],
        "ecl": ["3210", "3211", "3222", "3333"],
        "ecr": ["0000", "1110", "2210", "3210"],
        "rc16": ["1010", "3232", "1010", "3232"],
    }
    return lambda a, b, c: permute(a, b, int(tables[mode][c & 3], 16))


CASES = {
    "and.b32 %d, %a, %b;": (lambda a, b, c: a & b),
    "or.b32 %d, %a, %b;": (lambda a, b, c: a | b),
    "xor.b32 %d, %a, -1;": (lambda a, b, c: a ^ np.uint32(0xFFFFFFFF)),
    "not.b32 %d, %a;": (lambda a, b, c: ~a),
    "shl.b32 %d, %a, %c;": by_element(lambda a, b, c: a << c if c < 32 else 0),
    "shr.u32 %d, %a, %c;": by_element(lambda a, b, c: a >> c),
    "shr.s32 %d, %a, %c;": by_element(lambda a, b, c: (a - (a >> 31 << 32)) >> c & 0xFFFFFFFF),
    "shf.l.wrap.b32 %d, %a, %b, %c;": by_element(lambda a, b, c: ((b << 32 | a) << (c & 31)) >> 32),
    "shf.r.wrap.b32 %d, %a, %b, %c;": by_element(lambda a, b, c: (b << 32 | a) >> (c & 31)),
    "shf.l.clamp.b32 %d, %a, %b, %c;": by_element(
        lambda a, b, c: ((b << 32 | a) << min(c, 32)) >> 32
    ),
    "shf.r.clamp.b32 %d, %a, %b, %c;": by_element(lambda a, b, c: (b << 32 | a) >> min(c, 32)),
    "bfe.u32 %d, %a, %c, 7;": by_element(lambda a, b, c: field(a, c, 7, False)),
    "bfe.s32 %d, %a, %c, 7;": by_element(lambda a, b, c: field(a, c, 7, True)),
    "bfe.s32 %d, %a, 3, %c;": by_element(lambda a, b, c: field(a, 3, c, True)),
    "bfi.b32 %d, %a, %b, %c, 9;": by_element(lambda a, b, c: insert(a, b, c, 9)),
    "bfi.b32 %d, %a, %b, 5, %c;": by_element(lambda a, b, c: insert(a, b, 5, c)),
    "brev.b32 %d, %a;": by_element(lambda a, b, c: int(f"{a:032b}"[::-1], 2)),
    "popc.b32 %d, %a;": by_element(lambda a, b, c: a.bit_count()),
    "clz.b32 %d, %c;": by_element(lambda a, b, c: 32 - c.bit_length()),
    "bfind.u32 %d, %c;": by_element(lambda a, b, c: (c.bit_length() - 1) % 2**32),
    "lop3.b32 %d, %a, %b, %c, 0xE8;": (lambda a, b, c: (a & b) | (a & c) | (b & c)),
    "lop3.b32 %d, %a, %b, %c, 0x6A;": (lambda a, b, c: (a & b) ^ c),
    "prmt.b32 %d, %a, %b, 0x7362;": by_element(lambda a, b, c: permute(a, b, 0x7362)),
    "prmt.b32 %d, %a, %b, %b;": by_element(lambda a, b, c: permute(a, b, b)),
    **{
        f"prmt.b32.{mode} %d, %a, %b, %c;": by_element(named_permute(mode))
        for mode in ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    },
    "setp.gt.u32 %p, %a, %b; selp.b32 %d, %a, %b, %p;": lambda a, b, c: np.maximum(a, b),
    "setp.lt.s32 %p|%q, %a, %b; selp.b32 %d, 5, 6, %q;": (
        lambda a, b, c: np.where(a.view(np.int32) < b.view(np.int32), 6, 5)
    ),
    "setp.ne.s32 %q, %c, 3; setp.lo.and.u32 %p, %a, %b, %q; selp.b32 %d, 1, 0, %p;": (
        lambda a, b, c: (a < b) & (c != 3)
    ),
    "setp.hs.or.u32 %p, %a, %b, 1; not.pred %p, %p; selp.b32 %d, 1, 0, %p;": (
        lambda a, b, c: 0 * a
    ),
    "{ .reg .b16 lo, hi; mov.b32 {lo, hi}, %a; mov.b32 %d, {hi, lo}; }": by_element(
        lambda a, b, c: a >> 16 | (a & 0xFFFF) << 16
    ),
    "{ .reg .b8 w, x, y, z; mov.b32 {w, x, y, z}, %a; cvt.u32.u8 %d, y; }": (
        lambda a, b, c: a >> 16 & 0xFF
    ),
    "{ .reg .b64 w; mov.b64 w, {%a, %b}; shr.u64 w, w, 8; cvt.u32.u64 %d, w; }": by_element(
        lambda a, b, c: (b << 32 | a) >> 8
    ),
    "{ .reg .pred %p; setp.eq.s32 %p, 0, 0; } mov.b32 %d, 1; @%p mov.b32 %d, 2;": (
        lambda a, b, c: 0 * a + 1
    ),
}


@pytest.fixture(scope="module")
def kernels():
    cases = [Case(text, "b32", ("b32",) * 3) for text in CASES]
    return dict(zip(CASES, zip(load_cases(cases), cases, strict=True), strict=True))


@pytest.mark.parametrize("text", CASES)
def test_bits(kernels, text):
    third = LENGTH if "bfe.s32 %d, %a, 3" in text or "bfi.b32 %d, %a, %b, 5" in text else SMALL
    with np.errstate(over="ignore"):
        expected = np.asarray(CASES[text](A, B, third)).astype(np.uint64) & 0xFFFFFFFF
    np.testing.assert_array_equal(apply(*kernels[text], A, B, third), expected)


SPECIAL = np.float32([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan])
LEFT, RIGHT = np.repeat(SPECIAL, 7), np.tile(SPECIAL, 7)
UNORDERED = np.isnan(LEFT) | np.isnan(RIGHT)
ORDERED = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
COMPARES = {
    **{name: compare(LEFT, RIGHT) & ~UNORDERED for name, compare in ORDERED.items()},
    **{f"{name}u": compare(LEFT, RIGHT) | UNORDERED for name, compare in ORDERED.items()},
    "num": ~UNORDERED,
    "nan": UNORDERED,
}


def test_comparisons_of_floats_with_nan():
    cases = [
        Case(f"setp.{name}.f32 %p, %a, %b; selp.b32 %d, 1, 0, %p;", "b32", ("b32", "b32"))
        for name in COMPARES
    ]
    for (name, expected), kernel, case in zip(
        COMPARES.items(), load_cases(cases), cases, strict=True
    ):
        np.testing.assert_array_equal(apply(kernel, case, LEFT, RIGHT), expected, name)
