"""Branches, ends and barriers."""

from __future__ import annotations

from tests.ptx.records import Symbol
from tests.ptx.translate.line import Line, translates


@translates("bra")
def _(line: Line) -> str:
    line.take("uni")
    (target,) = line.operands(1)
    return f"goto {line.label(target)};"


@translates("brx")
def _(line: Line) -> str:
    line.take("idx")
    line.take("uni")
    index, targets = line.operands(2)
    if not isinstance(targets, Symbol) or targets.name not in line.names.targets:
        raise line.refuse("its targets are not known")
    cases = " ".join(
        f"case {i}: goto {line.label(Symbol(label))};"
        for i, label in enumerate(line.names.targets[targets.name])
    )
    wrong = f'fault(t, {line.number}, "branches to no target");'
    return f"switch ({line.value(index, 'b32')}) {{ {cases} default: {wrong} }}"


@translates("ret", "exit")
def _(line: Line) -> str:
    line.take("uni")
    line.operands(0)
    return "return;"


@translates("trap")
def _(line: Line) -> str:
    line.operands(0)
    return f'fault(t, {line.number}, "trap");'


@translates("bar", "barrier")
def _(line: Line) -> str:
    line.take("cta")
    line.take("aligned")
    if line.take_first("warp", "sync"):
        (mask,) = line.operands(1)
        return f"sync_warp(t, {line.number}, {line.value(mask, 'b32')});"
    if line.take("red"):
        return _reduce(line)
    arrives = line.take("arrive")
    if not arrives and not line.take("sync"):
        raise line.refuse("no barrier of a block or a warp")
    identity, *count = line.operands(1, 2)
    function = "arrive_block" if arrives else "sync_block"
    number = line.value(count[0], "b32") if count else "0"
    return f"{function}(t, {line.number}, {line.value(identity, 'b32')}, {number});"


def _reduce(line: Line) -> str:
    mode = line.choose({"popc": "popc", "and": "and", "or": "or"})
    type_ = line.type()
    target, identity, *count, value = line.operands(3, 4)
    number = line.value(count[0], "b32") if count else "0"
    arguments = f"t, {line.number}, {line.value(identity, 'b32')}, {number}"
    text = f"count_block({arguments}, {line.value(value, 'pred')})"
    if mode == "popc":
        return f"{line.target(target, type_)} = {text};"
    wanted = f"== ({number} ? {number} : t.ntid)" if mode == "and" else "> 0"
    return f"{line.target(target, 'pred')} = {text} {wanted};"


@translates("griddepcontrol", "setmaxnreg", "nanosleep")
def _(line: Line) -> str:
    """Says when the next launch may begin, how registers are shared, or how long to wait."""
    line.take("launch_dependents", "wait")
    line.take("inc", "dec")
    line.take("sync")
    line.take("aligned")
    line.take("u32")
    return ";"
