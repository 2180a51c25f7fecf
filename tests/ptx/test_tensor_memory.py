"""tcgen05 of the PTX runner: products into tensor memory."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx.one_statement import HEAD
from tests.ptx.run import KernelError, load_kernel

RNG = np.random.default_rng(1)
COLUMNS, DEPTH = 32, 16
BF16 = 1
WAIT = "AGAIN: mbarrier.try_wait.parity.shared::cta.b64 %p, [memory+24], 0;\n@!%p bra AGAIN;"
FREE = "bar.sync 0;\n@%first tcgen05.dealloc.cta_group::1.sync.aligned.b32 %base, 32;"


def registers(count):
    return ", ".join(f"%v{i}" for i in range(count))


def product_kernel(rows, *, wait=WAIT, free=FREE, columns=32, accumulate="0"):
    """Writes a · b, [rows, 32], of operands that memory [1024..] holds by descriptors."""
    half = rows == 64
    count = 16 if half else 32
    shape, split = ("16x32bx2.x16", ", 16") if half else ("32x32b.x32", "")
    stores = "\n".join(f"st.global.b32 [%to+{4 * i}], %v{i};" for i in range(count))
    form = rows // 16 << 24 | COLUMNS // 8 << 17 | BF16 << 10 | BF16 << 7 | 1 << 4
    return f"""{HEAD}
.extern .shared .align 1024 .b8 memory[];
.visible .entry product(.param .u64 product_in, .param .u64 product_out,
                        .param .u64 product_a, .param .u64 product_b)
{{
.reg .pred %p, %first, %one, %keep;
.reg .b32 %t, %i, %at, %word, %base, %row, %warp, %v<32>;
.reg .b64 %from, %to, %off, %da, %db;
mov.u32 %t, %tid.x;
setp.lt.u32 %first, %t, 32;
setp.eq.u32 %one, %t, 0;
setp.ne.u32 %keep, {accumulate}, 0;
@%first tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [memory+16], {columns};
@%first tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;
@%one mbarrier.init.shared::cta.b64 [memory+24], 1;
ld.param.u64 %from, [product_in];
mul.wide.u32 %off, %t, 64;
add.s64 %from, %from, %off;
mul.lo.u32 %at, %t, 64;
mov.u32 %word, memory;
add.u32 %at, %at, %word;
mov.u32 %i, 0;
COPY:
ld.global.b32 %word, [%from];
st.shared.b32 [%at+1024], %word;
add.s64 %from, %from, 4;
add.u32 %at, %at, 4;
add.u32 %i, %i, 1;
setp.lt.u32 %p, %i, 16;
@%p bra COPY;
bar.sync 0;
ld.shared.b32 %base, [memory+16];
ld.param.u64 %da, [product_a];
ld.param.u64 %db, [product_b];
@%one tcgen05.mma.cta_group::1.kind::f16 [%base], %da, %db, {form}, %keep;
@%one tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [memory+24];
{wait}
shr.u32 %warp, %t, 5;
shl.b32 %warp, %warp, 21;
add.u32 %at, %base, %warp;
tcgen05.ld.sync.aligned.{shape}.b32 {{{registers(count)}}}, [%at]{split};
tcgen05.wait::ld.sync.aligned;
ld.param.u64 %to, [product_out];
mul.wide.u32 %off, %t, {4 * count};
add.s64 %to, %to, %off;
{stores}
{free}
ret;
}}
"""


def place(matrix, image, start):
    """Rows of 32 bytes, not swizzled; the descriptor."""
    rows = matrix.shape[0]
    for (row, k), value in np.ndenumerate(matrix):
        at = start + k // 8 * rows * 16 + row // 8 * 128 + row % 8 * 16 + k % 8 * 2
        image[at // 2] = value
    return (1024 + start) >> 4 | rows << 16 | (128 >> 4) << 32 | 1 << 46


def bf16_bits(values):
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def run(rows, seed=0, **options):
    a, b = ((RNG.integers(-8, 8, (n, DEPTH)) / 4).astype(np.float32) for n in (rows, COLUMNS))
    image = np.zeros(4096, np.uint16)
    a_descriptor = place(bf16_bits(a), image, 0)
    b_descriptor = place(bf16_bits(b), image, 4096)
    out = np.zeros((128, 16 if rows == 64 else 32), np.float32)
    kernel = load_kernel(product_kernel(rows, **options))
    kernel.launch(1, 128, 16384, [image, out, a_descriptor, b_descriptor], seed)
    if rows == 64:  # the lanes of a warp's second half have the second half of the columns
        out = out.reshape(4, 2, 16, 16).transpose(0, 2, 1, 3).reshape(64, 32)
    return out, a @ b.T


@pytest.mark.parametrize("rows", [64, 128])
def test_products_come_to_their_lanes(rows):
    for seed in range(3):
        got, expected = run(rows, seed)
        np.testing.assert_array_equal(got, expected)


def test_a_product_that_nobody_waits_for_is_not_there():
    wrong = 0
    for seed in range(4):
        try:
            got, expected = run(128, seed, wait="")
            wrong += (got != expected).any()
        except KernelError:
            wrong += 1
    assert wrong > 0


def test_tensor_memory_begins_as_nan():
    assert np.isnan(run(128, accumulate="1")[0]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"free": ""}, "has not given back its tensor memory"),
        ({"columns": 48}, "allocates 48 columns"),
        ({"free": FREE.replace("32;", "64;")}, "gives back columns 0 to 64"),
        ({"wait": f"{WAIT}\nadd.u32 %base, %base, 8;"}, "columns 8 to 40 of tensor memory, 32 are"),
        ({"wait": f"{WAIT}\nadd.u32 %base, %base, 2097152;"}, "lanes from .* the warp's begin"),
    ],
)
def test_faults_of_tensor_memory(options, message):
    with pytest.raises(KernelError, match=message):
        run(128, **options)


def test_a_product_that_lands_behind_its_memory_is_a_fault():
    free = FREE.replace("bar.sync 0;", "")
    faults = 0
    for seed in range(6):
        try:
            run(128, seed, wait=free.strip(), free="")
        except KernelError as error:
            faults += "are allocated" in str(error)
    assert faults > 0
