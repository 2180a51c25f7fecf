"""Arithmetic of integers and floating-point numbers."""

from __future__ import annotations

from tests.ptx.translate.line import Line, translates

_FLOATS = ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2", "f32x2")
_WIDE = {16: "32", 32: "64"}


def is_float(type_: str) -> bool:
    return type_ in _FLOATS


def _call(line: Line, function: str, type_: str, how: str, num_operands: int) -> str:
    target, *operands = line.operands(num_operands)
    values = ", ".join(line.value(operand, type_) for operand in operands)
    return f"{line.target(target, type_)} = {function}<{type_}{how}>({values});"


@translates("add", "sub", "fma")
def _(line: Line) -> str:
    type_ = line.type()
    opcode = line.statement.opcode
    if type_ in ("f16", "bf16") and line.take("f32"):
        return _mixed(line, type_)
    return _call(line, opcode, type_, line.how(), 4 if opcode == "fma" else 3)


def _mixed(line: Line, narrow: str) -> str:
    """``add.f32.bf16 d, a, c``: all but the last operand are of the narrow type."""
    opcode, how = line.statement.opcode, line.how()
    target, *operands, last = line.operands(4 if opcode == "fma" else 3)
    values = [f"float_to_float<f32, {narrow}>({line.value(v, narrow)})" for v in operands]
    values.append(line.value(last, "f32"))
    return f"{line.target(target, 'f32')} = {opcode}<f32{how}>({', '.join(values)});"


@translates("min", "max")
def _(line: Line) -> str:
    """Of two operands, or of three."""
    type_ = line.type()
    function = f"{line.statement.opcode}<{type_}{line.how()}>"
    target, *operands = line.operands(3, 4)
    text, *others = (line.value(operand, type_) for operand in operands)
    for other in others:
        text = f"{function}({text}, {other})"
    return f"{line.target(target, type_)} = {text};"


@translates("abs", "neg")
def _(line: Line) -> str:
    type_ = line.type()
    return _call(line, line.statement.opcode, type_, line.how(), 2)


@translates("div")
def _(line: Line) -> str:
    type_ = line.type()
    line.take("full", "approx")
    return _call(line, "div", type_, line.how(), 3)


@translates("rem")
def _(line: Line) -> str:
    return _call(line, "rem", line.type(), "", 3)


@translates("mul", "mad")
def _(line: Line) -> str:
    type_ = line.type()
    multiplies_only = line.statement.opcode == "mul"
    if is_float(type_):
        function = "mul" if multiplies_only else "fma"
        return _call(line, function, type_, line.how(), 3 if multiplies_only else 4)
    part = line.choose({"lo": "lo", "hi": "hi", "wide": "wide"})
    result_type = type_[0] + _WIDE[int(type_[1:])] if part == "wide" else type_
    target, first, second, *rest = line.operands(3 if multiplies_only else 4)
    text = f"mul_{part}<{type_}>({line.value(first, type_)}, {line.value(second, type_)})"
    if rest:
        text = f"add<{result_type}>({text}, {line.value(rest[0], result_type)})"
    return f"{line.target(target, result_type)} = {text};"


_FUNCTIONS = {
    "ex2": "exp2_of",
    "lg2": "log2_of",
    "sin": "sine_of",
    "cos": "cosine_of",
    "tanh": "tanh_of",
    "sqrt": "root_of",
    "rsqrt": "inverse_root_of",
    "rcp": "inverse_of",
}


@translates(*_FUNCTIONS)
def _(line: Line) -> str:
    type_ = line.type()
    line.take("approx")
    how = line.how() or ", Exact"
    target, operand = line.operands(2)
    function = _FUNCTIONS[line.statement.opcode]
    value = line.value(operand, type_)
    return f"{line.target(target, type_)} = apply<{type_}{how}>({function}, {value});"


@translates("copysign")
def _(line: Line) -> str:
    type_ = line.type()
    if type_ != "f32":
        raise line.refuse("of another type than f32")
    target, sign, magnitude = (
        line.target(operand, type_) if i == 0 else line.value(operand, type_)
        for i, operand in enumerate(line.operands(3))
    )
    return f"{target} = ({sign} & 0x80000000u) | ({magnitude} & 0x7fffffffu);"
