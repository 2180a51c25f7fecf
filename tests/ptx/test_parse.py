"""What the PTX reader makes of declarations, scopes and operands."""

from __future__ import annotations

import pytest

from tests.ptx.one_statement import HEAD
from tests.ptx.parse import parse
from tests.ptx.records import (
    Address,
    BranchTargets,
    Immediate,
    Label,
    Pair,
    PtxError,
    Register,
    Sink,
    Statement,
    Symbol,
    Vector,
)


def body_of(text):
    (kernel,) = parse(f"{HEAD}.visible .entry k()\n{{\n{text}\n}}\n").kernels
    return kernel


def operands_of(statement):
    (line,) = body_of(statement).body
    return line.operands


@pytest.mark.parametrize(
    ("text", "operands"),
    [
        ("mov.u32 %r1, -5;", (Register("%r1"), Immediate(-5))),
        ("mov.u32 %r1, 0x1F;", (Register("%r1"), Immediate(31))),
        ("mov.f32 %f1, 0f3F800000;", (Register("%f1"), Immediate(0x3F800000, 32))),
        ("mov.b32 %r1, buffer;", (Register("%r1"), Symbol("buffer"))),
        ("ld.u32 %r1, [%rd1+-8];", (Register("%r1"), Address(Register("%rd1"), -8))),
        ("ld.u32 %r1, [ %rd1 + 0 ];", (Register("%r1"), Address(Register("%rd1"), 0))),
        ("mov.b64 {%r1, _}, %rd1;", (Vector((Register("%r1"), Sink())), Register("%rd1"))),
        (
            "setp.eq.s32 %p1|%p2, %r1, !%p3;",
            (Pair(Register("%p1"), Register("%p2")), Register("%r1"), Register("%p3", True)),
        ),
        (
            "x [%rd1, {%r1, 2}];",
            (Address(Register("%rd1"), 0, (Register("%r1"), Immediate(2))),),
        ),
    ],
)
def test_operands(text, operands):
    assert operands_of(text) == operands


def test_statements_keep_their_lines_and_guards():
    text = (
        "// comment; with { signs\nadd.s32 %r1,\n  %r2, /* two\nlines */ 3;\n@!%p1 bra $L1;\n$L1:"
    )
    add, branch, label = body_of(text).body
    assert isinstance(add, Statement)
    assert (add.line, add.text) == (7, "add.s32 %r1, %r2, 3")
    assert (add.opcode, add.modifiers, add.guard) == ("add", ("s32",), None)
    assert isinstance(branch, Statement)
    assert (branch.line, branch.guard) == (10, Register("%p1", negated=True))
    assert label == Label(11, "$L1")


def test_names_belong_to_the_braces_that_declare_them():
    kernel = body_of(
        """.reg .b32 %r<2>;
{ .reg .pred p; .reg .b64 %r1;
  again: mov.b64 {%r0, %r0}, %r1;
  @p bra again; }
{ .reg .pred p; again: @p bra again; }
mov.b32 %r1, 0;"""
    )
    assert kernel.registers == {
        "%r0": "b32",
        "%r1": "b32",
        "%p_s1": "pred",
        "%r1_s1": "b64",
        "%p_s2": "pred",
    }
    labels = [line.name for line in kernel.body if isinstance(line, Label)]
    assert labels == ["again_s1", "again_s2"]
    branches = [s for s in kernel.body if isinstance(s, Statement) and s.opcode == "bra"]
    assert [s.operands for s in branches] == [(Symbol("again_s1"),), (Symbol("again_s2"),)]
    assert branches[0].guard == Register("%p_s1")


def test_entries_have_parameters_and_threads():
    text = f"""{HEAD}
.extern .shared .align 16 .b8 memory[];
.global .align 4 .u16 values[3] = {{1, -1}};
.visible .entry first(
  .param .u64 .ptr .global .align 1 a,
  .param .align 64 .b8 b[48]
)
.reqntid 64, 2, 1
.maxnreg 128
{{
  .local .align 8 .b8 depot[24];
  ret;
}}
.entry second() {{ ret; }}
"""
    module = parse(text)
    assert module.target == "sm_90a"
    memory, values = module.variables
    assert (memory.space, memory.align, memory.size) == ("shared", 16, 0)
    assert (values.size, values.data) == (6, b"\x01\0\xff\xff")
    first, second = module.kernels
    assert (first.name, first.threads, second.threads) == ("first", 128, 0)
    assert [(p.name, p.size, p.align) for p in first.parameters] == [("a", 8, 8), ("b", 48, 64)]
    assert [(v.name, v.space, v.size) for v in first.variables] == [("depot", "local", 24)]


def test_branch_targets_are_lists_of_labels():
    kernel = body_of("table: .branchtargets A, B; A: B: ret;")
    assert kernel.body[0] == BranchTargets(6, "table", ("A", "B"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".visible .entry k() { add.s32 %r1, %r2", "line 4.*no ';'"),
        (".visible .entry k() { ret;", "a kernel has no end"),
        (".visible .entry k() { .reg .b24 %r1; }", "line 4.*no known form of registers"),
        (".visible .entry k() { ADD %r1; }", "line 4.*ADD %r1.*no known form"),
        (".visible .entry k() { add.s32 %r1, [%r2*4]; }", r"line 4.*\[%r2\*4\] is no address"),
        (".global .u64 x = {generic(y)};", "line 4.*x.*is no integer"),
        (".func f() { ret; }", "line 4.*no known form"),
    ],
)
def test_other_text_is_refused_by_line(text, message):
    with pytest.raises(PtxError, match=message):
        parse(f"{HEAD}{text}\n")
