"""tcgen05: matrix products into tensor memory."""

from __future__ import annotations

from tests.ptx.records import Immediate, Operand
from tests.ptx.translate.line import Line, translates


@translates("tcgen05")
def _(line: Line) -> str:
    line.take("cta_group::1")
    line.take("sync")
    line.take("aligned")
    if line.take("alloc", "dealloc", "relinquish_alloc_permit"):
        return _allocate(line)
    if line.take("wait::ld", "wait::st", "fence::before_thread_sync", "fence::after_thread_sync"):
        line.operands(0)
        return ";"
    if line.take("commit"):
        return _commit(line)
    if line.take("mma"):
        return _mma(line)
    if line.take("ld"):
        return _transfer(line, loads=True)
    if line.take("st"):
        return _transfer(line, loads=False)
    raise line.refuse("not a known tcgen05")


def _allocate(line: Line) -> str:
    words = line.statement.modifiers
    if "relinquish_alloc_permit" in words:
        line.operands(0)
        return ";"
    line.take("shared::cta")
    line.take("b32")
    where, columns = line.operands(2)
    count = line.value(columns, "b32")
    if "alloc" in words:
        return f"tensor_memory_alloc(t, {line.number}, {line.address(where)}, {count});"
    return f"tensor_memory_dealloc(t, {line.number}, {line.value(where, 'b32')}, {count});"


def _commit(line: Line) -> str:
    if not line.take("mbarrier::arrive::one"):
        raise line.refuse("no mbarrier is told")
    line.take("shared::cluster")
    line.take("b64")
    (at,) = line.operands(1)
    return f"mbarrier_arrive_later(t, {line.number}, {line.address(at)});"


def _mma(line: Line) -> str:
    if not line.take("kind::f16"):
        raise line.refuse("not of 16-bit numbers")
    d, a, b, form, accumulates = line.operands(5)
    operands = f"{line.address(d)}, {line.value(a, 'b64')}, {line.value(b, 'b64')}"
    more = f"{line.value(form, 'b32')}, {line.value(accumulates, 'pred')}"
    return f"tensor_memory_mma(t, {line.number}, {operands}, {more});"


def _transfer(line: Line, *, loads: bool) -> str:
    shape = line.choose({"32x32b": "k32x32b", "16x32bx2": "k16x32bx2"})
    count = line.take_matching(r"x(\d+)")
    line.take("b32")
    if count is None:
        raise line.refuse("its size is not known")
    is_split = shape == "k16x32bx2"
    operands = list(line.operands(3 if is_split else 2))
    split: Operand = Immediate(0)
    if is_split:
        split = operands.pop(2 if loads else 1)
    registers, where = operands if loads else reversed(operands)
    items = line.items(registers)
    if len(items) != int(count[1]):
        raise line.refuse(f"{len(items)} registers of {count[1]}")
    arguments = f"t, {line.number}, TensorShape::{shape}, {line.address(where)}, "
    arguments += f"{line.value(split, 'b32')}, {len(items)}"
    if loads:
        call = f"uint32_t to[{len(items)}]; tensor_memory_load({arguments}, to);"
        return f"{{ {call} {line.assign(items, 'b32', 'to')} }}"
    return f"{{ {line.array('from', registers)} tensor_memory_store({arguments}, from); }}"
