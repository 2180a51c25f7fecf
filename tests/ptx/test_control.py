"""Branches, barriers and warps of the PTX runner."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx.one_statement import HEAD
from tests.ptx.run import KernelError, load_kernel, load_kernels


def kernel_text(body, name="control"):
    """A kernel whose threads leave ``%r9`` in ``out[block, thread]``."""
    return f"""
.visible .entry {name}(.param .u64 {name}_out, .param .u32 {name}_n)
{{
  .reg .pred %p<9>;
  .reg .b32 %r<12>;
  .reg .b64 %rd<4>;
  mov.u32 %r1, %tid.x;
  ld.param.u32 %r2, [{name}_n];
  mov.u32 %r10, %ctaid.x;
  mov.u32 %r11, %ntid.x;
  {body}
  mad.lo.s32 %r10, %r10, %r11, %r1;
  mul.wide.u32 %rd2, %r10, 4;
  ld.param.u64 %rd1, [{name}_out];
  add.s64 %rd1, %rd1, %rd2;
  st.global.u32 [%rd1], %r9;
DONE:
  ret;
}}
"""


SHARED = ".extern .shared .align 16 .b8 memory[];\n"
LANES = np.arange(32)


def bits_of(values):
    return int(sum(1 << int(i) for i in np.flatnonzero(values)))


WARP = {
    "shfl.sync.bfly.b32 %r9|%p1, %r1, 5, 0x1f, -1;": LANES ^ 5,
    "shfl.sync.idx.b32 %r9, %r1, 7, 0x1f, -1;": 0 * LANES + 7,
    "shfl.sync.up.b32 %r9, %r1, 3, 0, -1;": np.where(LANES < 3, LANES, LANES - 3),
    "shfl.sync.down.b32 %r9, %r1, 3, 0x1f, -1;": np.where(LANES > 28, LANES, LANES + 3),
    "shfl.sync.bfly.b32 %r9, %r1, 3, 0x181f, -1;": LANES ^ 3,
    "shfl.sync.idx.b32 %r9, %r1, 5, 0x181f, -1;": LANES // 8 * 8 + 5,
    "shfl.sync.up.b32 %r3|%p1, %r1, 3, 0, -1; selp.b32 %r9, 1, 0, %p1;": LANES >= 3,
    "shfl.sync.down.b32 %r3|%p1, %r1, 3, 0x1f, -1; selp.b32 %r9, 1, 0, %p1;": LANES <= 28,
    "setp.gt.s32 %p1, %r1, 20; vote.sync.ballot.b32 %r9, %p1, -1;": 0 * LANES + bits_of(LANES > 20),
    "setp.eq.s32 %p1, %r1, 2;vote.sync.any.pred %p2, %p1, -1; selp.b32 %r9, 1, 0, %p2;": LANES >= 0,
    "setp.gt.s32 %p1, %r1, 2; vote.sync.all.pred %p2, %p1, -1; selp.b32 %r9, 1, 0, %p2;": LANES < 0,
    "redux.sync.add.s32 %r9, %r1, -1;": 0 * LANES + 496,
    "sub.s32 %r3, %r1, 9; redux.sync.min.s32 %r9, %r3, -1;": 0 * LANES + 2**32 - 9,
    "sub.s32 %r3, %r1, 9; redux.sync.min.u32 %r9, %r3, -1;": 0 * LANES,
    "and.b32 %r3, %r1, 3; match.any.sync.b32 %r9, %r3, -1;": 0x11111111 << (LANES & 3),
    "elect.sync _|%p1, -1; selp.b32 %r9, 1, 0, %p1;": LANES == 0,
    "mov.u32 %r9, %lanemask_lt;": (1 << LANES) - 1,
    # Lanes apart: a shuffle of the first eight alone.
    "mov.u32 %r9, 0; setp.ge.u32 %p1, %r1, 8; @%p1 bra APART; "
    "shfl.sync.bfly.b32 %r9, %r1, 1, 31, 0xff; APART: bar.warp.sync -1;": (LANES < 8) * (LANES ^ 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def warps():
    entries = [kernel_text(body, f"w{i}") for i, body in enumerate(WARP)]
    return load_kernels(HEAD + "".join(entries))


@pytest.mark.parametrize("number", range(len(WARP)), ids=list(WARP))
def test_lanes_exchange_values(warps, number):
    for seed in range(3):
        out = np.full(32, 99, np.uint32)
        warps[f"w{number}"].launch(1, 32, 0, [out, 32], seed)
        assert out.tolist() == list(WARP.values())[number].astype(np.uint32).tolist()


SWITCH = kernel_text(
    """
  and.b32 %r3, %r1, 3;
  targets: .branchtargets ZERO, ONE, TWO, THREE;
  brx.idx %r3, targets;
ZERO: mov.u32 %r9, 10; bra.uni JOIN;
ONE: mov.u32 %r9, 11; bra JOIN;
TWO: mov.u32 %r9, 12;
THREE: mov.u32 %r9, 13;
JOIN:
""",
    "switch_",
)
LOOP = kernel_text(
    """
  mov.u32 %r9, 0;
  mov.u32 %r3, 0;
$L__loop:
  setp.ge.u32 %p1, %r3, %r1;
  @%p1 bra $L__end;
  add.u32 %r9, %r9, %r3;
  add.u32 %r3, %r3, 1;
  bra.uni $L__loop;
$L__end:
""",
    "loop",
)
EARLY = kernel_text(
    """
  setp.ge.u32 %p1, %r1, %r2;
  @%p1 ret;
  bar.sync 0;
  mov.u32 %r9, 5;
""",
    "early",
)
NAMED = kernel_text(
    """
  mov.u32 %r9, 0;
  setp.ge.u32 %p1, %r1, 64;
  @%p1 bra OTHERS;
  st.shared.u32 [memory], 42;
  bar.sync 1, 64;
  bar.arrive 2, 96;
  bra.uni LAST;
OTHERS:
  bar.sync 2, 96;
  ld.shared.u32 %r9, [memory];
LAST:
""",
    "named",
)
COUNT = kernel_text(
    """
  setp.lt.u32 %p1, %r1, %r2;
  barrier.cta.red.popc.aligned.u32 %r9, 0, %p1;
  bar.red.and.pred %p2, 0, %p1;
  @%p2 add.u32 %r9, %r9, 1000;
""",
    "count",
)


@pytest.fixture(scope="module")
def flows():
    return load_kernels(HEAD + SHARED + SWITCH + LOOP + EARLY + NAMED + COUNT)


def run(kernel, threads=96, n=0, seed=0):
    out = np.full(threads, 99, np.uint32)
    kernel.launch(1, threads, 64, [out, n], seed)
    return out.tolist()


def test_branches_by_index(flows):
    assert run(flows["switch_"])[:8] == [10, 11, 13, 13] * 2


def test_loops(flows):
    assert run(flows["loop"]) == [i * (i - 1) // 2 for i in range(96)]


def test_threads_that_have_ended_are_not_waited_for(flows):
    for seed in range(4):
        assert run(flows["early"], n=40, seed=seed) == [5] * 40 + [99] * 56


def test_barriers_have_numbers_and_counts(flows):
    for seed in range(4):
        assert run(flows["named"], seed=seed) == [0] * 64 + [42] * 32


def test_barriers_count_predicates(flows):
    assert run(flows["count"], n=50) == [50] * 96
    assert run(flows["count"], n=96) == [1096] * 96


def test_blocks_have_their_places():
    body = """
  mov.u32 %r3, %ctaid.y; mov.u32 %r4, %nctaid.x; mad.lo.s32 %r9, %r3, %r4, %r10; mov.u32 %r10, %r9;
"""
    out = np.full(6 * 8, 99, np.uint32)
    load_kernel(HEAD + kernel_text(body)).launch((2, 3), 8, 0, [out, 0])
    assert out.tolist() == np.repeat(np.arange(6), 8).tolist()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("setp.eq.s32 %p1, %r1, 3; @%p1 bra SKIP; bar.warp.sync -1; SKIP: bar.sync 0;", "for ever"),
        ("setp.lt.s32 %p1, %r1, 32; @%p1 bar.sync 1;", ""),
        ("setp.lt.s32 %p1, %r1, 32; @%p1 bar.sync 1, 64;", "for ever.*barrier 1"),
        ("setp.lt.s32 %p1, %r1, 7; @%p1 bra A;\nbar.sync 0; bra B;\nA: bar.sync 0; B:", "its warp"),
        ("bar.sync 16;", "no barrier 16"),
        ("bar.sync 0, 33;", "33 threads, not of warps"),
        ("shfl.sync.idx.b32 %r9, %r1, 0, 0x1f, 2;", "is without itself"),
    ],
)  # fmt: skip
def test_waiting_in_vain_is_a_fault(body, message):
    text = HEAD + kernel_text(f"mov.u32 %r9, 0; {body}")
    out = np.zeros(64, np.uint32)
    if not message:  # the others end, and are not waited for
        load_kernel(text).launch(1, 64, 0, [out, 0])
        return
    with pytest.raises(KernelError, match=message):
        load_kernel(text).launch(1, 64, 0, [out, 0])


@pytest.mark.parametrize(
    ("threads", "shared", "message"),
    [(0, 0, "grid 1,1,1 of 0 threads"), (2048, 0, "2048 threads"), (32, 1 << 18, "shared memory")],
)
def test_impossible_launches_are_refused(flows, threads, shared, message):
    with pytest.raises(KernelError, match=message):
        flows["loop"].launch(1, threads, shared, [np.zeros(2048, np.uint32), 0])


RACE = HEAD + SHARED + kernel_text(
    """
  shl.b32 %r3, %r1, 2;
  mov.u32 %r4, memory;
  add.u32 %r3, %r3, %r4;
  st.shared.u32 [%r3], %r1;
  BARRIER
  xor.b32 %r3, %r3, 252;
  ld.shared.u32 %r9, [%r3];
"""
)  # fmt: skip
GLOBAL_RACE = HEAD + kernel_text(
    """
  ld.param.u64 %rd1, [control_out];
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd1, %rd1, %rd2;
  st.global.u32 [%rd1+256], %r1;
  BARRIER
  mov.u32 %r9, 0;
  ld.param.u64 %rd1, [control_out];
  ld.global.u32 %r9, [%rd1+256];
"""
)


@pytest.mark.parametrize("text", [RACE, GLOBAL_RACE], ids=["shared", "global"])
def test_threads_race_without_a_barrier(text):
    def launch(barrier):
        kernel = load_kernel(text.replace("BARRIER", barrier), sanitize="thread")
        out = np.full(128, 99, np.uint32)
        kernel.launch(1, 64, 256, [out, 0], seed=1)

    launch("bar.sync 0;")
    with pytest.raises(KernelError, match=r"data race[\s\S]*kernel\.ptx"):
        launch("")


@pytest.mark.parametrize(("value", "races"), [("%r2", False), ("%r1", True)])
def test_threads_race_where_they_write_different_values(value, races):
    text = HEAD + SHARED + kernel_text(f"mov.u32 %r9, 0; st.shared.u32 [memory], {value};")
    kernel = load_kernel(text, sanitize="thread")
    out = np.zeros(64, np.uint32)
    if not races:
        kernel.launch(1, 64, 4, [out, 5])
        return
    with pytest.raises(KernelError, match="data race"):
        kernel.launch(1, 64, 4, [out, 5])


def test_blocks_race_with_each_other():
    body = "ld.param.u64 %rd1, [control_out]; st.global.u32 [%rd1], %r10; mov.u32 %r9, 0;"
    atomic = body.replace("st.global.u32 [%rd1], %r10", "red.global.add.u32 [%rd1], %r10")
    out = np.zeros(128, np.uint32)
    body, atomic = (HEAD + kernel_text(text + " bra DONE;") for text in (body, atomic))
    load_kernel(atomic, sanitize="thread").launch(2, 32, 0, [out, 0])
    with pytest.raises(KernelError, match="data race"):
        load_kernel(body, sanitize="thread").launch(2, 1, 0, [out, 0])


def test_a_missing_barrier_shows_as_wrong_numbers_for_some_seed():
    kernel = load_kernel(RACE.replace("BARRIER", ""))
    wrong = 0
    for seed in range(8):
        out = np.zeros(64, np.uint32)
        kernel.launch(1, 64, 256, [out, 0], seed)
        wrong += out.tolist() != [i ^ 63 for i in range(64)]
    assert wrong > 0
