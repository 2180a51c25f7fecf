"""Matrix instructions of the PTX runner against NumPy, by the layouts of the PTX manual."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx.one_statement import HEAD
from tests.ptx.run import KernelError, load_kernel

RNG = np.random.default_rng(1)
LANES = np.arange(32)
GROUP, MEMBER = LANES // 4, LANES % 4


def registers(name, count):
    return ", ".join(f"%{name}{i}" for i in range(count))


def transfer(count, letter, opcode):
    """Loads or stores ``count`` registers per thread of an array [threads, count]."""
    lines = [f"ld.param.u64 %at, [matrix_{letter}];", f"mul.wide.u32 %off, %tidx, {4 * count};"]
    lines.append("add.s64 %at, %at, %off;")
    for i in range(count):
        at = f"[%at+{4 * i}]"
        operands = f"%{letter}{i}, {at}" if opcode == "ld" else f"{at}, %{letter}{i}"
        lines.append(f"{opcode}.global.b32 {operands};")
    return "\n".join(lines)


def matrix_kernel(statement, counts):
    """A kernel that loads a, b and c, does one statement, and stores d."""
    parameters = ", ".join(f".param .u64 matrix_{letter}" for letter in counts)
    declared = "\n".join(f".reg .b32 %{letter}<{max(n, 1)}>;" for letter, n in counts.items())
    loads = "\n".join(transfer(n, letter, "ld") for letter, n in counts.items() if letter != "d")
    return f"""{HEAD}
.extern .shared .align 1024 .b8 memory[];
.visible .entry matrix({parameters})
{{
{declared}
.reg .b32 %tidx, %s<4>;
.reg .b64 %at, %off;
.reg .pred %p;
mov.u32 %tidx, %tid.x;
{loads}
{statement}
{transfer(counts["d"], "d", "st")}
ret;
}}
"""


# k; how to draw elements; their bits; type of the sum.
def draw_floats(*shape):
    return RNG.standard_normal(shape).astype(np.float16).astype(np.float32)


def draw_bytes(*shape):
    return RNG.integers(-128, 128, shape).astype(np.float32)


def draw_small(*shape):
    return (RNG.integers(-8, 8, shape) / 4).astype(np.float32)


def bf16_bits(values):
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def e4m3_bits(values):
    """Of multiples of 1/4 below 2."""
    table = {
        0.0: 0,
        0.25: 0x28,
        0.5: 0x30,
        0.75: 0x34,
        1.0: 0x38,
        1.25: 0x3A,
        1.5: 0x3C,
        1.75: 0x3E,
    }
    table[2.0] = 0x40
    return np.vectorize(lambda v: table[abs(v)] | (0x80 if v < 0 else 0))(values).astype(np.uint8)


# k, how to draw elements, their bits.
FORMS = {
    "m16n8k16 f32 f16": (16, draw_floats, lambda v: v.astype(np.float16)),
    "m16n8k8 f32 f16": (8, draw_floats, lambda v: v.astype(np.float16)),
    "m16n8k16 f16 f16": (16, draw_small, lambda v: v.astype(np.float16)),
    "m16n8k16 f32 bf16": (16, draw_small, bf16_bits),
    "m16n8k8 f32 tf32": (8, draw_floats, lambda v: v),
    "m16n8k4 f32 tf32": (4, draw_floats, lambda v: v),
    "m16n8k32 s32 s8": (32, draw_bytes, lambda v: v.astype(np.int8)),
    "m16n8k16 s32 s8": (16, draw_bytes, lambda v: v.astype(np.int8)),
    "m16n8k32 f32 e4m3": (32, draw_small, e4m3_bits),
}


def fragment(bits, rows):
    """Registers [32, n] of an operand [rows, k]: ``rows`` is 16 for a and 8 for b."""
    per_word = 4 // bits.itemsize
    words = np.ascontiguousarray(bits).view(np.uint32)  # [rows, k / per_word]
    parts = [
        words[GROUP + 8 * half, step * 4 + MEMBER]
        for step in range(words.shape[1] // 4)
        for half in range(rows // 8)
    ]
    assert bits.shape[1] == words.shape[1] * per_word
    return np.stack(parts, 1)


def accumulators(matrix):
    """Elements [32, 4] of c and d [16, 8]."""
    parts = [matrix[GROUP + 8 * half, MEMBER * 2 + i] for half in range(2) for i in range(2)]
    return np.stack(parts, 1)


@pytest.mark.parametrize("form", FORMS)
def test_mma(form):
    shape, sum_, element = form.split()
    depth, draw, to_bits = FORMS[form]
    a, b, c = draw(16, depth), draw(8, depth), draw_small(16, 8)
    if sum_ == "s32":
        c = draw_bytes(16, 8)
    expected = c + a @ b.T
    a_words, b_words = fragment(to_bits(a), 16), fragment(to_bits(b), 8)
    c_words = accumulators(c.astype({"f32": np.float32, "f16": np.float16, "s32": np.int32}[sum_]))
    c_words = np.ascontiguousarray(c_words).view(np.uint32)
    counts = {"a": a_words.shape[1], "b": b_words.shape[1], "c": c_words.shape[1]}
    counts["d"] = counts["c"]
    operands = ", ".join(f"{{{registers(letter, counts[letter])}}}" for letter in "dabc")
    text = f"mma.sync.aligned.{shape}.row.col.{sum_}.{element}.{element}.{sum_} {operands};"
    d = np.zeros_like(c_words)
    load_kernel(matrix_kernel(text, counts)).launch(1, 32, 0, [a_words, b_words, c_words, d])
    got = d.view({"f32": np.float32, "f16": np.float16, "s32": np.int32}[sum_])
    np.testing.assert_allclose(
        got, accumulators(expected), rtol=1e-3 if sum_ == "f16" else 2e-6, atol=1e-5
    )


COPY_IN = """
mov.u32 %s0, memory;
shl.b32 %s1, %tidx, 4;
add.u32 %s1, %s0, %s1;
st.shared.v4.b32 [%s1], {%a0, %a1, %a2, %a3};
bar.sync 0;
"""


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count, transposed):
    """Lane 8 i + r names row r of matrix i; here rows lie in the opposite order."""
    rows = RNG.integers(0, 2**16, (32, 8), np.uint16)
    modifiers = f"x{count}" + (".trans" if transposed else "")
    text = f"""{COPY_IN}
xor.b32 %s1, %tidx, 31;
shl.b32 %s1, %s1, 4;
add.u32 %s1, %s1, %s0;
ldmatrix.sync.aligned.m8n8.{modifiers}.shared.b16 {{{registers("d", count)}}}, [%s1];
"""
    d = np.zeros((32, count), np.uint32)
    kernel = load_kernel(matrix_kernel(text, {"a": 4, "d": count}))
    kernel.launch(1, 32, 512, [rows.view(np.uint32), d])
    for i in range(count):
        matrix = rows[::-1][8 * i : 8 * i + 8]
        matrix = matrix.T if transposed else matrix
        expected = np.stack([matrix[GROUP, 2 * MEMBER], matrix[GROUP, 2 * MEMBER + 1]], 1)
        np.testing.assert_array_equal(d[:, i].copy().view(np.uint16).reshape(32, 2), expected)


def test_stmatrix_is_the_inverse_of_ldmatrix():
    rows = RNG.integers(0, 2**16, (32, 8), np.uint16)
    text = f"""{COPY_IN}
ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{registers("d", 4)}}}, [%s1];
bar.sync 0;
st.shared.v4.b32 [%s1], {{%s0, %s0, %s0, %s0}};
bar.sync 0;
stmatrix.sync.aligned.m8n8.x4.shared.b16 [%s1], {{{registers("d", 4)}}};
bar.sync 0;
ld.shared.v4.b32 {{{registers("d", 4)}}}, [%s1];
"""
    d = np.zeros((32, 4), np.uint32)
    load_kernel(matrix_kernel(text, {"a": 4, "d": 4})).launch(1, 32, 512, [rows.view(np.uint32), d])
    np.testing.assert_array_equal(d.view(np.uint16).reshape(32, 8), rows)


# wgmma: 64 x 16 of f16 times 16 x 32. Operands lie in shared memory as the canonical layouts say.

COLUMNS, DEPTH = 32, 16
SWIZZLES = {0: 0, 128: 1, 64: 2, 32: 3}


def descriptor(start, leading, stride, swizzle):
    return start >> 4 | (leading >> 4) << 16 | (stride >> 4) << 32 | SWIZZLES[swizzle] << 62


def place(matrix, start, swizzle, transposed, image):
    """Writes ``matrix`` [rows, 16] into shared memory's image; its descriptor."""
    rows = matrix.shape[0]
    if not transposed:  # k of a row side by side, eight rows make a group
        row_bytes = swizzle or 16
        leading, stride = (rows * 16, 128) if not swizzle else (16, 8 * row_bytes)
        for (r, k), value in np.ndenumerate(matrix):
            at = r // 8 * stride + r % 8 * row_bytes
            at += 2 * k if swizzle else k // 8 * leading + 2 * (k % 8)
            put(image, start + at, swizzle, value)
        return descriptor(start, leading, stride, swizzle)
    row_bytes = swizzle or 16  # rows of one k side by side, eight k make a group
    per_row = row_bytes // 2
    num_chunks = -(-rows // per_row)
    stride, leading = (8 * row_bytes * num_chunks, 8 * row_bytes)
    for (r, k), value in np.ndenumerate(matrix):
        at = k // 8 * stride + r // per_row * leading + k % 8 * row_bytes + 2 * (r % per_row)
        put(image, start + at, swizzle, value)
    if not swizzle:
        leading, stride = stride, leading
    return descriptor(start, leading, stride, swizzle)


def put(image, at, swizzle, value):
    if swizzle:
        at ^= at >> 3 & (swizzle - 16)
    image[at : at + 2] = np.frombuffer(value.tobytes(), np.uint8)


WGMMA = f"""
ld.param.u64 %at, [matrix_i];
mov.u32 %s0, memory;
mov.u32 %s1, 0;
COPY:
ld.global.b32 %s2, [%at];
add.u32 %s3, %s0, %s1;
st.shared.b32 [%s3], %s2;
add.s64 %at, %at, 4;
add.u32 %s1, %s1, 4;
setp.lt.u32 %p, %s1, 16384;
@%p bra COPY;
fence.proxy.async.shared::cta;
bar.sync 0;
setp.ne.u32 %p, %c0, 0;
wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {{{registers("d", 16)}}}, OPERANDS;
wgmma.commit_group.sync.aligned;
WAIT
"""


def wgmma_kernel(operands, wait="wgmma.wait_group.sync.aligned 0;"):
    """As ``matrix_kernel``; i is the image, b holds the two descriptors, d is loaded too."""
    counts = {"a": 4, "b": 4, "c": 1, "d": 16}
    before = transfer(16, "d", "ld") + "\n.reg .b64 %da, %db;\n"
    before += "mov.b64 %da, {%b0, %b1};\nmov.b64 %db, {%b2, %b3};\n"
    text = matrix_kernel(before + WGMMA.replace("OPERANDS", operands).replace("WAIT", wait), counts)
    return load_kernel(text.replace("matrix(", "matrix(.param .u64 matrix_i, "))


def run_wgmma(kernel, a, b, c, *, swizzle, transposed, accumulates, seed=0):
    image = np.full(16384, 0xFF, np.uint8)
    a_descriptor = place(a, 0, swizzle, False, image)
    b_descriptor = place(b, 8192, swizzle, transposed, image)
    words = np.array([a_descriptor, b_descriptor], np.uint64).view(np.uint32)
    lanes = np.arange(128)
    row = lanes // 32 * 16 + lanes % 32 // 4
    places = [
        (row + 8 * half, 8 * j + lanes % 4 * 2 + i)
        for j in range(COLUMNS // 8)
        for half in range(2)
        for i in range(2)
    ]
    d = np.stack([c[place_] for place_ in places], 1).astype(np.float32)
    fragments = np.concatenate([fragment(a[16 * w : 16 * w + 16], 16) for w in range(4)])
    arguments = [
        image,
        fragments,
        np.tile(words, (128, 1)),
        np.full(128, accumulates, np.uint32),
        d,
    ]
    kernel.launch(1, 128, 16384, arguments, seed)
    result = np.zeros((64, COLUMNS), np.float32)
    for i, place_ in enumerate(places):
        result[place_] = d[:, i]
    return result


@pytest.fixture(scope="module")
def wgmma_kernels():
    operands = {f"b{t}": f"%da, %db, %p, 1, 1, 0, {t}" for t in (0, 1)}
    operands |= {"negative": "%da, %db, %p, -1, 1, 0, 0"}
    operands |= {"registers": f"{{{registers('a', 4)}}}, %db, %p, 1, 1, 0"}
    return {name: wgmma_kernel(text) for name, text in operands.items()}


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("transposed", [False, True])
def test_wgmma_reads_every_layout(wgmma_kernels, swizzle, transposed):
    a, b = (draw_floats(n, DEPTH).astype(np.float16) for n in (64, COLUMNS))
    c = draw_floats(64, COLUMNS)
    kernel = wgmma_kernels[f"b{int(transposed)}"]
    got = run_wgmma(kernel, a, b, c, swizzle=swizzle, transposed=transposed, accumulates=1)
    expected = c + a.astype(np.float32) @ b.astype(np.float32).T
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "sign"), [("b0", 1), ("negative", -1), ("registers", 1)])
def test_wgmma_forms(wgmma_kernels, name, sign):
    a, b = (draw_floats(n, DEPTH).astype(np.float16) for n in (64, COLUMNS))
    c = draw_floats(64, COLUMNS)
    got = run_wgmma(wgmma_kernels[name], a, b, c, swizzle=128, transposed=False, accumulates=0)
    expected = sign * (a.astype(np.float32) @ b.astype(np.float32).T)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_lanes_that_have_ended_are_missed():
    statement = "setp.eq.u32 %p, %tidx, 9;\n@%p ret;\n"
    counts = {"a": 2, "b": 1, "c": 4, "d": 4}
    operands = ", ".join(f"{{{registers(letter, counts[letter])}}}" for letter in "dabc")
    statement += f"mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {operands};"
    arrays = [np.zeros((32, n), np.uint32) for n in counts.values()]
    with pytest.raises(KernelError, match="lanes 00000200 of the warp have ended"):
        load_kernel(matrix_kernel(statement, counts)).launch(1, 32, 0, arrays)


@pytest.mark.parametrize("seed", [0, 1])
def test_wgmma_is_there_when_it_is_waited_for(wgmma_kernels, seed):
    a, b = (draw_floats(n, DEPTH).astype(np.float16) for n in (64, COLUMNS))
    c = draw_floats(64, COLUMNS)
    options = {"swizzle": 128, "transposed": False, "accumulates": 1, "seed": seed}
    got = run_wgmma(wgmma_kernels["b0"], a, b, c, **options)
    expected = c + a.astype(np.float32) @ b.astype(np.float32).T
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_wgmma_that_nobody_waits_for_is_nan_of_odd_seeds(wgmma_kernels):
    a, b = (draw_floats(n, DEPTH).astype(np.float16) for n in (64, COLUMNS))
    options = {"swizzle": 128, "transposed": False, "accumulates": 1}
    kernel = wgmma_kernel("%da, %db, %p, 1, 1, 0, 0", "wgmma.wait_group.sync.aligned 1;")
    c = draw_floats(64, COLUMNS)
    assert np.isnan(run_wgmma(kernel, a, b, c, seed=1, **options)).all()
    assert np.isfinite(run_wgmma(kernel, a, b, c, seed=2, **options)).all()
