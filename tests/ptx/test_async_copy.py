"""Asynchronous copies and mbarriers of the PTX runner."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx.arguments import TensorMap
from tests.ptx.one_statement import HEAD
from tests.ptx.run import KernelError, load_kernel


def copy_kernel(body):
    """Threads copy 16 bytes each of ``in`` and write what they then read to ``out``."""
    return f"""{HEAD}
.extern .shared .align 1024 .b8 memory[];
.visible .entry copy(.param .u64 copy_in, .param .u64 copy_out, .param .align 64 .b8 copy_map[128])
{{
.reg .pred %p<4>;
.reg .b32 %r<16>;
.reg .b64 %rd<8>;
mov.u32 %r1, %tid.x;
shl.b32 %r2, %r1, 4;
mov.u32 %r3, memory;
add.u32 %r3, %r3, %r2;
cvt.u64.u32 %rd3, %r2;
ld.param.u64 %rd1, [copy_in];
ld.param.u64 %rd2, [copy_out];
add.s64 %rd1, %rd1, %rd3;
add.s64 %rd2, %rd2, %rd3;
{body}
st.global.v4.b32 [%rd2], {{%r8, %r9, %r10, %r11}};
ret;
}}
"""


READ = "ld.shared.v4.b32 {%r8, %r9, %r10, %r11}, [%r3];"
BEGIN = "cp.async.cg.shared.global [%r3], [%rd1], 16;\n"
GIVEN = np.arange(1, 129, dtype=np.uint32).reshape(32, 4)
NAN = np.full((32, 4), 2**32 - 1, np.uint32)


def run(body, given=GIVEN, shared=8192, map_=None, seed=0, threads=32, **options):
    out = np.zeros((threads, 4), np.uint32)
    load_kernel(copy_kernel(body), **options).launch(1, threads, shared, [given, out, map_], seed)
    return out


@pytest.mark.parametrize(
    ("waits", "arrives"),
    [
        ("cp.async.commit_group; cp.async.wait_group 0;", True),
        ("cp.async.wait_all;", True),
        ("cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 1;", True),
        ("", False),
        ("cp.async.commit_group;", False),
        ("cp.async.wait_group 0;", False),
        ("cp.async.commit_group; cp.async.wait_group 1;", False),
    ],
)
def test_copies_arrive_when_their_group_is_waited_for(waits, arrives):
    np.testing.assert_array_equal(run(f"{BEGIN}{waits}\n{READ}"), GIVEN if arrives else NAN)


OTHERS = """
bar.sync 0;
xor.b32 %r12, %r3, 256;
st.shared.v4.b32 [%r12], {%r1, %r1, %r1, %r1};
bar.sync 0;
bar.sync 0;
bar.sync 0;
"""


def test_a_copy_that_nobody_waits_for_lands_on_what_others_wrote():
    given, right = np.tile(GIVEN, (2, 1)), np.repeat(np.arange(64, dtype=np.uint32) ^ 16, 4)
    waited = run(f"{BEGIN}cp.async.wait_all; {OTHERS}{READ}", given, threads=64, seed=2)
    np.testing.assert_array_equal(waited.reshape(-1), right)
    assert (run(f"{BEGIN}{OTHERS}{READ}", given, threads=64, seed=2).reshape(-1) != right).any()


def test_groups_arrive_one_after_the_other():
    body = """
cp.async.ca.shared.global [%r3], [%rd1], 8;
cp.async.commit_group;
cp.async.ca.shared.global [%r3+8], [%rd1+8], 4;
cp.async.ca.shared.global [%r3+12], [%rd1+12], 4, 0;
cp.async.commit_group;
cp.async.wait_group 1;
ld.shared.v2.b32 {%r8, %r12}, [%r3];
ld.shared.v2.b32 {%r9, %r10}, [%r3+8];
cp.async.wait_group 0;
ld.shared.b32 %r10, [%r3+8];
ld.shared.b32 %r11, [%r3+12];
"""
    out = run(body)
    expected = np.stack([GIVEN[:, 0], NAN[:, 0], GIVEN[:, 2], 0 * GIVEN[:, 3]], 1)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("num_read", [0, 4, 10, 16])
def test_bytes_that_are_not_read_are_zero(num_read):
    body = f"mov.u32 %r7, {num_read};\ncp.async.cg.shared.global [%r3], [%rd1], 16, %r7;\n"
    expected = GIVEN.copy()
    expected.view(np.uint8)[:, num_read:] = 0
    np.testing.assert_array_equal(run(f"{body}cp.async.wait_all;\n{READ}"), expected)


def test_nothing_is_read_where_no_byte_is_asked_for():
    body = f"add.s64 %rd1, %rd1, 4096;\ncp.async.cg.shared.global [%r3], [%rd1], 16, 0;\n{BEGIN}"
    body = body.replace(BEGIN, "cp.async.wait_all;\n") + READ
    assert not run(body, sanitize="address").any()


def test_others_see_a_copy_behind_a_barrier_only():
    other = READ.replace("%r3", "%r4")
    body = f"{BEGIN}cp.async.wait_all;\nBARRIER\nxor.b32 %r4, %r3, 496;\n{other}"
    out = run(body.replace("BARRIER", "bar.sync 0;"), sanitize="thread")
    np.testing.assert_array_equal(out, GIVEN[::-1])
    with pytest.raises(KernelError, match="data race"):
        run(body.replace("BARRIER", ""), sanitize="thread")


MBARRIER = """
setp.eq.u32 %p1, %r1, 0;
@%p1 mbarrier.init.shared::cta.b64 [memory+4096], 1;
bar.sync 0;
mov.b64 %rd4, copy_map;
cvta.param.u64 %rd4, %rd4;
mov.u32 %r5, X;
mov.u32 %r6, Y;
@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [memory+4096], 512;
@%p1 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [memory], [%rd4, {%r5, %r6}], [memory+4096];
WAIT
"""  # noqa: E501
WAIT = """
AGAIN:
mbarrier.try_wait.parity.shared::cta.b64 %p2, [memory+4096], 0;
@!%p2 bra.uni AGAIN;
"""


def box(x, y, wait=WAIT, swizzle=0, sanitize=""):
    """A box of [16, 8] words at column x and row y of a [20, 13] tensor, as memory has it."""
    tensor = np.arange(1, 20 * 16 + 1, dtype=np.uint32).reshape(20, 16)
    text = MBARRIER.replace("X", str(x)).replace("Y", str(y)).replace("WAIT", wait)
    map_ = TensorMap(tensor, (16, 8), swizzle)
    out = run(text + READ, map_=map_, sanitize=sanitize)
    padded = np.zeros((60, 60), np.uint32)
    padded[20:40, 20:36] = tensor
    return out.reshape(16, 8), padded[20 + y : 36 + y, 20 + x : 28 + x]


@pytest.mark.parametrize("place", [(0, 0), (5, 3), (12, 10), (-3, -2)])
def test_boxes_are_copied_and_filled_up_with_zeros(place):
    got, expected = box(*place)
    np.testing.assert_array_equal(got, expected)


def test_boxes_are_swizzled():
    got, expected = box(0, 0, swizzle=32)
    rows = np.arange(16)
    chunks = got.reshape(16, 2, 4)
    np.testing.assert_array_equal(chunks[rows, rows // 4 % 2], expected[:, :4])
    np.testing.assert_array_equal(chunks[rows, 1 - rows // 4 % 2], expected[:, 4:])


def test_a_box_that_nobody_waits_for_is_not_there():
    got, expected = box(0, 0, wait="")
    assert (got != expected).any()
    with pytest.raises(KernelError, match="data race"):
        box(0, 0, wait="", sanitize="thread")
    got, expected = box(0, 0, sanitize="thread")
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (WAIT, "no mbarrier is at shared offset 4096"),
        (f"mbarrier.init.shared.b64 [memory+4096], 40; {WAIT}", "waits for ever"),
        (MBARRIER.replace("512;", "528;").replace("WAIT", WAIT), "waits for ever"),
        (MBARRIER.replace("[memory], [%rd4", "[memory+16], [%rd4"), "not aligned to 128"),
    ],
)
def test_faults_of_transfers(body, message):
    tensor = np.zeros((16, 8), np.uint32)
    body = body.replace("X", "0").replace("Y", "0").replace("WAIT", "")
    with pytest.raises(KernelError, match=message):
        run(body + READ, map_=TensorMap(tensor, (16, 8), 0))


def test_arrivals_end_a_phase():
    body = f"""
setp.eq.u32 %p1, %r1, 0;
@%p1 mbarrier.init.shared.b64 [memory+4096], 32;
bar.sync 0;
st.shared.v4.b32 [%r3], {{%r1, %r1, %r1, %r1}};
mbarrier.arrive.shared.b64 %rd5, [memory+4096];
{WAIT}
xor.b32 %r3, %r3, 496;
{READ}
"""
    for seed in range(3):
        assert run(body, seed=seed, sanitize="thread" if seed == 0 else "")[:, 0].tolist() == list(
            range(31, -1, -1)
        )
