"""Matrix instructions: mma, ldmatrix, stmatrix, wgmma."""

from __future__ import annotations

from collections.abc import Iterable

from tests.ptx.records import Immediate, Operand, Statement, Vector
from tests.ptx.translate.line import Line, translates

_ELEMENTS = ("s8", "u8", "e4m3", "e5m2", "f16", "bf16", "tf32")
_BYTES = {"s8": 1, "u8": 1, "e4m3": 1, "e5m2": 1, "f16": 2, "bf16": 2, "tf32": 4}
_MOST_RESULTS = 8
_SUMS = {"f32": 4, "f16": 2, "s32": 4}


@translates("mma")
def _(line: Line) -> str:
    """``mma.sync.aligned.m16n8kK.row.col.D.A.B.C d, a, b, c``."""
    words = line.statement.modifiers
    line.take("sync")
    line.take("aligned")
    line.take("satfinite") and line.refuse("saturates")
    shape = line.take_matching(r"m16n8k(\d+)")
    if shape is None or not line.take("row") or not line.take("col"):
        raise line.refuse("no shape of m16n8, or not row by column")
    for word in words[-4:]:
        line.take(word)
    sum_, a_type, b_type, c_type = words[-4:]
    if sum_ not in _SUMS or c_type != sum_ or a_type not in _BYTES or b_type not in _BYTES:
        raise line.refuse("its types are not known")
    num_a = int(shape[1]) * _BYTES[a_type] // 8
    d, a, b, c = line.operands(4)
    _require(line, a, num_a, b, num_a // 2, c, _SUMS[sum_], d, _SUMS[sum_])
    arrays = " ".join(line.array(name, part) for name, part in zip("abc", (a, b, c), strict=True))
    types = f"Element::{a_type}, Element::{b_type}, Sum::{sum_}, {num_a}"
    call = f"uint32_t d[4]; mma(t, {line.number}, {types}, a, b, c, d);"
    return f"{{ {arrays} {call} {line.assign(line.items(d), 'b32', 'd')} }}"


def _require(line: Line, *pairs: Operand | int) -> None:
    for operand, count in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(operand, Vector) or len(operand.items) != count:
            raise line.refuse(f"needs {count} registers where it has {operand}")


@translates("ldmatrix", "stmatrix")
def _(line: Line) -> str:
    line.take("sync")
    line.take("aligned")
    if not (line.take("m8n8") and line.take("b16") and line.take("shared", "shared::cta")):
        raise line.refuse("no 8x8 matrices of 16 bits in shared memory")
    count = line.choose({"x1": 1, "x2": 2, "x4": 4})
    transposed = str(line.take("trans")).lower()
    first, second = line.operands(2)
    head = f"t, {line.number}, {transposed}, {count}"
    if line.statement.opcode == "ldmatrix":
        _require(line, first, count)
        call = f"uint32_t to[4]; ldmatrix({head}, {line.address(second)}, to);"
        return f"{{ {call} {line.assign(line.items(first), 'b32', 'to')} }}"
    _require(line, second, count)
    return f"{{ {line.array('from', second)} stmatrix({head}, {line.address(first)}, from); }}"


@translates("wgmma")
def _(line: Line) -> str:
    """Products, and waits that fill the registers of those that have ended."""
    line.take("sync")
    line.take("aligned")
    if line.take("fence"):
        line.operands(0)
        return ";"
    if line.take("commit_group"):
        line.operands(0)
        return f"wgmma_commit(t, {line.number});"
    if line.take("wait_group"):
        return _wait(line)
    if not line.take("mma_async"):
        raise line.refuse("not a known wgmma")
    return _wgmma(line)


def _wait(line: Line) -> str:
    (groups,) = line.operands(1)
    lines = [f"wgmma_wait(t, {line.number}, {line.value(groups, 'b32')});", "uint32_t d[128];"]
    for number, result in enumerate(line.names.results):
        taken = " ".join(f"{line.target(r, 'b32')} = d[{i}];" for i, r in enumerate(result))
        lines.append(f"if (wgmma_take(t, {number}, {len(result)}, d)) {{ {taken} }}")
    return f"{{ {' '.join(lines)} }}"


def list_results(statements: Iterable[Statement]) -> tuple[tuple[Operand, ...], ...]:
    """The lists of registers that products may be under way to; none if they overlap.

    Those of a kernel with overlapping ones are computed at once.
    """
    found: list[tuple[Operand, ...]] = []
    for statement in statements:
        if statement.opcode == "wgmma" and "mma_async" in statement.modifiers:
            (result, *_) = statement.operands
            if isinstance(result, Vector) and result.items not in found:
                found.append(result.items)
    registers = [register for result in found for register in result]
    overlap = len(set(registers)) < len(registers)
    return () if overlap or len(found) > _MOST_RESULTS else tuple(found)


def _wgmma(line: Line) -> str:
    words = line.statement.modifiers
    shape = line.take_matching(r"m64n(\d+)k(\d+)")
    sum_, a_type, b_type = words[-3:]
    for word in words[-3:]:
        line.take(word)
    if shape is None or sum_ != "f32" or a_type != b_type or a_type not in _ELEMENTS[2:]:
        raise line.refuse("its types are not known")
    if int(shape[2]) * _BYTES[a_type] != 32:
        raise line.refuse("its shape is not known")
    columns = int(shape[1])
    d, a, b, *rest = line.operands(*range(6, 9))
    _require(line, d, columns // 2)
    condition = line.value(rest[0], "pred")
    scale_a, scale_b = (_scale(line, operand) for operand in rest[1:3])
    flags = [_flag(line, operand) for operand in rest[3:]]
    a_in_registers = isinstance(a, Vector)
    if a_in_registers:
        flags = ["false", *flags]
    flags += ["false"] * (2 - len(flags))
    form = (
        f"{{Element::{a_type}, {columns}, {condition}, {scale_a}, {scale_b}, {', '.join(flags)}}}"
    )
    values = ", ".join(line.value(item, "b32") for item in line.items(d))
    declarations = f"uint32_t d[] = {{{values}}};"
    if a_in_registers:
        _require(line, a, 4)
        declarations += " " + line.array("a", a)
    a_arguments = "a, 0" if a_in_registers else f"nullptr, {line.value(a, 'b64')}"
    items = line.items(d)
    result = line.names.results.index(items) if items in line.names.results else -1
    arguments = f"{form}, {result}, {a_arguments}, {line.value(b, 'b64')}"
    call = f"wgmma(t, {line.number}, {arguments}, d);"
    return f"{{ {declarations} {call} {line.assign(line.items(d), 'b32', 'd')} }}"


def _scale(line: Line, operand: Operand) -> str:
    if operand not in (Immediate(1), Immediate(-1)):
        raise line.refuse("scales by another number than 1 or -1")
    return "1" if operand == Immediate(1) else "-1"


def _flag(line: Line, operand: Operand) -> str:
    if operand not in (Immediate(0), Immediate(1)):
        raise line.refuse("transposes by another number than 0 or 1")
    return "true" if operand == Immediate(1) else "false"
