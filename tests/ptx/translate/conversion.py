"""cvt: every pair of types that kernels convert between."""

from __future__ import annotations

from tests.ptx.parse import TYPE_BYTES
from tests.ptx.translate.arithmetic import is_float
from tests.ptx.translate.line import Line, translates

_WHOLE = {word: word for word in ("rni", "rzi", "rmi", "rpi")}
_BYTES = {"e4m3x2": "E4m3", "e5m2x2": "E5m2"}
_PAIRS = ("f16x2", "bf16x2")


@translates("cvt")
def _(line: Line) -> str:
    words = line.statement.modifiers
    to, from_ = words[-2], words[-1]
    line.take(to)
    line.take(from_)
    if to in _BYTES or from_ in _BYTES:
        return _bytes(line, to, from_)
    if to == "tf32":
        return _tf32(line, from_)
    if to in _PAIRS:
        return _pair(line, to, from_)
    if to not in TYPE_BYTES or from_ not in TYPE_BYTES:
        raise line.refuse("its types are not known")
    target, operand = line.operands(2)
    value = line.value(operand, from_, wider=True)
    return f"{line.target(target, to, wider=True)} = {_scalar(line, to, from_)}({value});"


def _scalar(line: Line, to: str, from_: str) -> str:
    if is_float(to) and is_float(from_):
        whole = line.choose(_WHOLE, "")
        how = line.how()
        if whole:
            if to != from_:
                raise line.refuse("rounds to a whole number of another type")
            return f"float_to_whole<{to}, Whole::{whole}{how}>"
        return f"float_to_float<{to}, {from_}{how}>"
    if is_float(from_):
        whole = line.choose(_WHOLE)
        line.take("sat")
        return f"float_to_integer<{to}, {from_}, Whole::{whole}{line.how()}>"
    if is_float(to):
        return f"integer_to_float<{to}, {from_}{line.how()}>"
    saturates = str(line.take("sat")).lower()
    return f"integer_to_integer<{to}, {from_}, {saturates}>"


def _tf32(line: Line, from_: str) -> str:
    rounding = line.choose({"rna": "rna", "rn": "rn", "rz": "rz"})
    target, operand = line.operands(2)
    if from_ != "f32":
        raise line.refuse("to tf32 from another type than f32")
    text = f"float_to_tf32<{rounding}>({line.value(operand, 'b32')})"
    return f"{line.target(target, 'b32')} = {text};"


def _pair(line: Line, to: str, from_: str) -> str:
    if from_ != "f32":
        raise line.refuse("to a pair from another type than f32")
    target, high, low = line.operands(3)
    values = f"{line.value(high, 'b32')}, {line.value(low, 'b32')}"
    return f"{line.target(target, 'b32')} = floats_to_pair<{to}{line.how()}>({values});"


def _bytes(line: Line, to: str, from_: str) -> str:
    line.take("rn")
    if from_ in _BYTES and to in _PAIRS:
        target, operand = line.operands(2)
        if line.take("relu"):
            raise line.refuse("relu of a pair of bytes")
        text = f"bytes_to_pair<{to}, {_BYTES[from_]}>({line.value(operand, 'b16')})"
        return f"{line.target(target, 'b32')} = {text};"
    if not line.take("satfinite"):
        raise line.refuse("to bytes without satfinite")
    relu = str(line.take("relu")).lower()
    if from_ == "f32":
        target, high, low = line.operands(3)
        values = f"{line.value(high, 'b32')}, {line.value(low, 'b32')}"
        text = f"floats_to_bytes<{_BYTES[to]}, {relu}>({values})"
    elif from_ in _PAIRS:
        target, operand = line.operands(2)
        text = f"pair_to_bytes<{_BYTES[to]}, {from_}, {relu}>({line.value(operand, 'b32')})"
    else:
        raise line.refuse("its types are not known")
    return f"{line.target(target, 'b16')} = {text};"
