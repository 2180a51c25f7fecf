"""Loads, stores, atomics and the state spaces of the PTX runner."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx.arguments import Struct
from tests.ptx.one_statement import HEAD
from tests.ptx.records import PtxError
from tests.ptx.run import KernelError, load_kernel, load_kernels

SPACES = (
    HEAD
    + """
.global .align 8 .b8 table[8] = {1, 2, 3, 4, 5, 6, 7, 255};
.const .align 4 .f32 constants[3] = {0f3F800000, 0fC0000000, 0f40400000};
.global .align 4 .u32 counter;
.shared .align 16 .b8 fixed[64];
.extern .shared .align 16 .b8 dynamic[];

.visible .entry arrays(.param .u64 arrays_out)
{
  .reg .b32 %r<8>;
  .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [arrays_out];
  ld.global.s8 %r1, [table+7];
  ld.global.u8 %r2, [table+7];
  ld.const.f32 %r3, [constants+4];
  mov.u64 %rd2, table;
  ld.global.v2.b32 {%r4, %r5}, [%rd2];
  ld.global.u32 %r6, [counter];
  add.s32 %r6, %r6, 1;
  st.global.u32 [counter], %r6;
  st.global.v4.b32 [%rd1], {%r1, %r2, %r3, %r4};
  st.global.v2.b32 [%rd1+16], {%r5, %r6};
  ret;
}

.visible .entry shared_offsets(.param .u64 shared_offsets_out)
{
  .shared .align 8 .b8 own[8];
  .reg .b32 %r<8>;
  .reg .b64 %rd<6>;
  ld.param.u64 %rd1, [shared_offsets_out];
  mov.u32 %r1, fixed;
  mov.u32 %r2, own;
  mov.u32 %r3, dynamic;
  st.global.v2.b32 [%rd1], {%r1, %r2};
  st.global.u32 [%rd1+8], %r3;
  st.shared.u32 [dynamic+4], 77;
  mov.u64 %rd2, dynamic;
  cvta.shared.u64 %rd3, %rd2;
  ld.u32 %r4, [%rd3+4];
  st.global.u32 [%rd1+12], %r4;
  cvta.to.shared.u64 %rd4, %rd3;
  ld.shared.u32 %r5, [%rd4+4];
  ld.shared.u32 %r6, [dynamic+8];
  st.global.v2.b32 [%rd1+16], {%r5, %r6};
  ret;
}

.visible .entry local_array(.param .u64 local_array_out)
{
  .local .align 16 .b8 __local_depot0[16];
  .reg .b64 %SP, %SPL;
  .reg .b32 %r<4>;
  .reg .b64 %rd<8>;
  mov.u64 %SPL, __local_depot0;
  cvta.local.u64 %SP, %SPL;
  ld.param.u64 %rd1, [local_array_out];
  mov.u32 %r1, %tid.x;
  add.u64 %rd2, %SPL, 4;
  st.local.u32 [%rd2], %r1;
  ld.u32 %r2, [%SP+4];
  mul.wide.u32 %rd3, %r1, 4;
  add.s64 %rd4, %rd1, %rd3;
  bar.sync 0;
  st.global.u32 [%rd4], %r2;
  ret;
}
"""
)


@pytest.fixture(scope="module")
def spaces():
    return load_kernels(SPACES)


def test_arrays_have_their_values_and_keep_what_is_written(spaces):
    out = np.zeros(6, np.uint32)
    for launch in (1, 2):
        spaces["arrays"].launch(1, 1, 0, [out])
        assert out.tolist() == [0xFFFFFFFF, 255, 0xC0000000, 0x04030201, 0xFF070605, launch]


def test_shared_variables_lie_one_after_the_other_and_begin_as_nan(spaces):
    out = np.zeros(6, np.uint32)
    spaces["shared_offsets"].launch(1, 1, 16, [out])
    assert out.tolist() == [0, 64, 80, 77, 77, 0xFFFFFFFF]


def test_local_memory_is_each_threads_own(spaces):
    out = np.zeros(64, np.uint32)
    spaces["local_array"].launch(1, 64, 0, [out])
    assert out.tolist() == list(range(64))


PARAMETERS = (
    HEAD
    + """
.visible .entry structure(.param .align 8 .b8 structure_call[24], .param .f32 structure_x)
{
  .reg .b32 %r<4>;
  .reg .b64 %rd<4>;
  .reg .b16 %rs<2>;
  ld.param.u64 %rd1, [structure_call+8];
  ld.param.v2.u32 {%r1, %r2}, [structure_call];
  ld.param.u8 %rs1, [structure_call+17];
  cvt.u32.u16 %r3, %rs1;
  st.global.v2.b32 [%rd1], {%r1, %r2};
  st.global.b32 [%rd1+8], %r3;
  mov.b64 %rd2, structure_call;
  cvta.param.u64 %rd3, %rd2;
  ld.param.f32 %r1, [structure_x];
  ld.b32 %r2, [%rd3+4];
  st.global.b32 [%rd1+12], %r1;
  st.global.b32 [%rd1+16], %r2;
  ret;
}
"""
)


def test_structures_are_passed_by_their_bytes():
    out = np.zeros(5, np.uint32)
    call = Struct({0: np.int32(-3), 4: np.int32(9), 8: out, 17: b"\x81"}, size=24)
    load_kernel(PARAMETERS).launch(1, 1, 0, [call, 1.5])
    assert out.tolist() == [2**32 - 3, 9, 0x81, 0x3FC00000, 9]


def test_arguments_that_do_not_fit_are_refused():
    kernel = load_kernel(PARAMETERS)
    with pytest.raises(ValueError, match="12 bytes for a parameter of 24"):
        kernel.launch(1, 1, 0, [b"\0" * 12, 1.5])
    with pytest.raises(ValueError, match="integer 1 for a parameter of type f32"):
        kernel.launch(1, 1, 0, [b"\0" * 24, 1])


def access(statement, registers=".reg .b32 %r<9>;"):
    """A kernel that does one access of ``%rd1``, its array, or of shared memory at ``%r1``."""
    return f"""{HEAD}
.extern .shared .align 16 .b8 dynamic[];
.visible .entry access(.param .u64 access_array, .param .u32 access_offset)
{{
  {registers}
  .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [access_array];
  ld.param.u32 %r1, [access_offset];
  cvt.u64.u32 %rd2, %r1;
  add.s64 %rd1, %rd1, %rd2;
  {statement}
  ret;
}}
"""


@pytest.mark.parametrize(
    ("statement", "offset", "message"),
    [
        ("ld.shared.u32 %r2, [%r1];", 2, "line 14.*4 bytes at misaligned shared offset 2"),
        ("ld.shared.v4.b32 {%r2, %r3, %r4, %r5}, [%r1];", 8, "16 bytes at misaligned shared"),
        ("st.shared.b16 [%r1+-2], 1;", 0, "out of 64 bytes"),
        ("st.shared.u32 [%r1], 1;", 64, "4 bytes at shared offset 64, out of 64 bytes"),
        ("st.global.v2.b32 [%rd1], {%r1, %r1};", 4, "8 bytes at misaligned address"),
        ("cp.async.cg.shared.global [%r1], [%rd1], 16;", 8, "16 bytes at misaligned"),
        ("trap;", 0, "line 14.*thread 0: trap"),
    ],
)
def test_faults_name_the_kernel_and_the_line(statement, offset, message):
    array = np.zeros(16, np.uint64)
    with pytest.raises(KernelError, match=f"ptx access.*{message}"):
        load_kernel(access(statement)).launch(1, 1, 64, [array, offset])


@pytest.mark.parametrize(
    "statement",
    [
        "ld.global.u32 %r2, [%rd1];",
        "st.global.v2.b32 [%rd1], {%r1, %r1};",
        "atom.global.add.u32 %r2, [%rd1], 1;",
        "cp.async.ca.shared.global [dynamic], [%rd1], 4; cp.async.wait_all;",
    ],
)
def test_what_lies_behind_an_array_is_out_of_bounds(statement):
    array = np.zeros(14, np.uint32)
    kernel = load_kernel(access(statement), sanitize="address")
    kernel.launch(1, 1, 64, [array, 48])
    with pytest.raises(KernelError, match=r"heap-buffer-overflow[\s\S]*kernel\.ptx:14"):
        kernel.launch(1, 1, 64, [array, 56])


def test_wide_accesses_are_checked_whole():
    array = np.zeros(6, np.uint32)
    kernel = load_kernel(
        access("ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd1];"), sanitize="address"
    )
    with pytest.raises(KernelError, match="heap-buffer-overflow"):
        kernel.launch(1, 1, 0, [array, 16])


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("frobnicate.b32 %r1, %r2;", "unknown opcode frobnicate"),
        ("add.sideways.s32 %r1, %r1, %r1;", "unknown modifier .sideways"),
        ("ld.global.L1::never.u32 %r1, [%rd1];", "unknown modifier .L1::never"),
        ("add.s32 %r1, %r1;", "has 2 operands"),
        ("add.s64 %r1, %r1, %r1;", "%r1 is no register of type s64"),
        ("add.s32 %r1, %r1, %clock;", "unknown register %clock"),
        ("mul.s32 %r1, %r1, %r1;", "none of lo, hi, wide"),
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 %r1, %r1, %r1, %r1;", "no shape"),
        ("ld.param.u64 %rd1, [access_offset];", "not within the 4 bytes of the parameter"),
        ("bra $nowhere;", "there is no label $nowhere"),
    ],
)
def test_what_is_unknown_is_refused_by_name(statement, reason):
    with pytest.raises(PtxError) as error:
        load_kernel(access(statement))
    assert reason in str(error.value)
    assert "PTX line 14" in str(error.value)


ATOMICS = {
    "atom.global.add.u32 %r2, [%rd1], 3;": 5 + 3 * 96,
    "red.global.add.s32 [%rd1], -1;": 5 - 96,
    "red.relaxed.gpu.global.max.u32 [%rd1], %r3;": 95,
    "atom.global.min.s32 %r2, [%rd1], %r3;": 0,
    "atom.global.or.b32 %r2, [%rd1], %r3;": 127,
    "atom.global.inc.u32 %r2, [%rd1], 9;": (5 + 96) % 10,
    "atom.global.cas.b32 %r2, [%rd1], 5, 8;": 8,
    "atom.global.exch.b32 %r2, [%rd1], 4;": 4,
}


@pytest.fixture(scope="module")
def atomics():
    texts = [access(f"mov.u32 %r3, %tid.x; {statement}") for statement in ATOMICS]
    entries = [text[text.index(".visible") :] for text in texts]
    return load_kernels(
        HEAD + "\n".join(e.replace("access", f"a{i}") for i, e in enumerate(entries))
    )


@pytest.mark.parametrize("number", range(len(ATOMICS)), ids=list(ATOMICS))
def test_atomics_take_every_thread_into_account(atomics, number):
    array = np.array([5, 0], np.uint32)
    atomics[f"a{number}"].launch(1, 96, 0, [array, 0])
    assert array.tolist() == [list(ATOMICS.values())[number] % 2**32, 0]


def test_atomics_of_floats_and_of_shared_memory():
    text = access(
        """st.shared.f32 [dynamic], 0f00000000;
  bar.sync 0;
  atom.shared.add.f32 %r2, [dynamic], 0f3F000000;
  bar.sync 0;
  ld.shared.f32 %r2, [dynamic];
  st.global.f32 [%rd1], %r2;"""
    )
    array = np.zeros(1, np.float32)
    load_kernel(text).launch(1, 64, 4, [array, 0])
    assert array.tolist() == [32.0]
