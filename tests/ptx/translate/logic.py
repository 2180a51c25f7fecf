"""Bits, comparisons, selections and moves."""

from __future__ import annotations

from tests.ptx.parse import TYPE_BYTES
from tests.ptx.records import Immediate, Pair, Sink, Vector
from tests.ptx.translate.arithmetic import is_float
from tests.ptx.translate.line import Line, translates

_INFIX = {"and": "&", "or": "|", "xor": "^"}
_UNSIGNED_COMPARES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_COMPARES = ("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu")


@translates("and", "or", "xor")
def _(line: Line) -> str:
    type_ = line.type()
    target, first, second = line.operands(3)
    operator = _INFIX[line.statement.opcode]
    text = f"{line.value(first, type_)} {operator} {line.value(second, type_)}"
    return f"{line.target(target, type_)} = {text};"


@translates("not", "cnot")
def _(line: Line) -> str:
    type_ = line.type()
    target, operand = line.operands(2)
    operator = "!" if type_ == "pred" or line.statement.opcode == "cnot" else "~"
    return f"{line.target(target, type_)} = {operator}{line.value(operand, type_)};"


@translates("shl", "shr")
def _(line: Line) -> str:
    type_ = line.type()
    target, operand, by = line.operands(3)
    text = (
        f"{line.statement.opcode}<{type_}>({line.value(operand, type_)}, {line.value(by, 'b32')})"
    )
    return f"{line.target(target, type_)} = {text};"


@translates("shf")
def _(line: Line) -> str:
    direction = line.choose({"l": "l", "r": "r"})
    wraps = line.choose({"wrap": "true", "clamp": "false"})
    type_ = line.type()
    target, *operands = line.operands(4)
    values = ", ".join(line.value(operand, type_) for operand in operands)
    return f"{line.target(target, type_)} = shf_{direction}<{wraps}>({values});"


@translates("bfe", "bfi")
def _(line: Line) -> str:
    type_ = line.type()
    opcode = line.statement.opcode
    target, *operands = line.operands(4 if opcode == "bfe" else 5)
    values = [line.value(operand, type_) for operand in operands[:-2]]
    values += [line.value(operand, "b32") for operand in operands[-2:]]
    return f"{line.target(target, type_)} = {opcode}<{type_}>({', '.join(values)});"


@translates("brev")
def _(line: Line) -> str:
    type_ = line.type()
    target, operand = line.operands(2)
    return f"{line.target(target, type_)} = brev<{type_}>({line.value(operand, type_)});"


@translates("popc", "clz", "bfind")
def _(line: Line) -> str:
    type_ = line.type()
    target, operand = line.operands(2)
    text = f"{line.statement.opcode}<{type_}>({line.value(operand, type_)})"
    return f"{line.target(target, 'b32')} = {text};"


@translates("lop3")
def _(line: Line) -> str:
    type_ = line.type()
    target, *operands = line.operands(5)
    values = ", ".join(line.value(operand, type_) for operand in operands)
    return f"{line.target(target, type_)} = lop3({values});"


_PRMT_MODES = {
    "f4e": "kF4e",
    "b4e": "kB4e",
    "rc8": "kRc8",
    "ecl": "kEcl",
    "ecr": "kEcr",
    "rc16": "kRc16",
}


@translates("prmt")
def _(line: Line) -> str:
    mode = line.choose(_PRMT_MODES, "")
    type_ = line.type()
    target, *operands = line.operands(4)
    first, second, selector = (line.value(operand, type_) for operand in operands)
    if mode:
        selector = f"prmt_selector<PrmtMode::{mode}>({selector})"
    return f"{line.target(target, type_)} = prmt({first}, {second}, {selector});"


@translates("selp")
def _(line: Line) -> str:
    type_ = line.type()
    target, first, second, condition = line.operands(4)
    text = f"{line.value(first, type_)} : {line.value(second, type_)}"
    return f"{line.target(target, type_)} = {line.value(condition, 'pred')} ? {text};"


@translates("setp")
def _(line: Line) -> str:
    type_ = line.type()
    compare = line.choose(
        {**{word: word for word in (*_COMPARES, "num", "nan")}, **_UNSIGNED_COMPARES}
    )
    combine = line.choose(_INFIX, "")
    how = line.how() if is_float(type_) else ""
    target, first, second, *rest = line.operands(4 if combine else 3)
    value = f"compare<Compare::{compare}, {type_}{how}>"
    value += f"({line.value(first, type_)}, {line.value(second, type_)})"
    results = (target.first, target.second) if isinstance(target, Pair) else (target,)
    lines = [f"const bool is = {value};"]
    for result, term in zip(results, ("is", "!is"), strict=False):
        if isinstance(result, Sink):
            continue
        other = f" {combine} {line.value(rest[0], 'pred')}" if combine else ""
        lines.append(f"{line.target(result, 'pred')} = {term}{other};")
    return f"{{ {' '.join(lines)} }}"


@translates("mov")
def _(line: Line) -> str:
    type_ = line.type()
    target, operand = line.operands(2)
    if isinstance(target, Vector):
        return _unpack(line, target, line.value(operand, type_), type_)
    if isinstance(operand, Vector):
        return f"{line.target(target, type_)} = {_pack(line, operand, type_)};"
    wider = isinstance(operand, Immediate) and operand.float_bits == 0
    return f"{line.target(target, type_)} = {line.value(operand, type_, wider=wider)};"


def _part_type(line: Line, vector: Vector, type_: str) -> str:
    bits = 8 * TYPE_BYTES[type_] // len(vector.items)
    if bits not in (8, 16, 32, 64):
        raise line.refuse(f"{len(vector.items)} parts of {type_}")
    return f"b{bits}"


def _unpack(line: Line, vector: Vector, value: str, type_: str) -> str:
    part = _part_type(line, vector, type_)
    bits = 8 * TYPE_BYTES[part]
    parts = [
        f"{line.target(item, part, wider=True)} = static_cast<{part}>(all >> {i * bits});"
        for i, item in enumerate(vector.items)
        if not isinstance(item, Sink)
    ]
    return f"{{ const uint64_t all = {value}; {' '.join(parts)} }}"


def _pack(line: Line, vector: Vector, type_: str) -> str:
    part = _part_type(line, vector, type_)
    bits = 8 * TYPE_BYTES[part]
    values = (line.value(item, part, wider=True) for item in vector.items)
    return " | ".join(f"uint64_t{{{part}({v})}} << {i * bits}" for i, v in enumerate(values))
