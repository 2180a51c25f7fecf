"""Reads the operands of one statement."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.ptx.records import Address, Immediate, Operand, Pair, Register, Sink, Symbol, Vector

_INTEGER = re.compile(r"-?(0[xX][0-9a-fA-F]+|\d+)U?")
_FLOAT = re.compile(r"0([fFdD])([0-9a-fA-F]+)")
_CLOSING = {"{": "}", "[": "]", "(": ")"}

Rename = Callable[[str], str]


def split_operands(text: str) -> list[str]:
    """The operands that commas outside of brackets separate."""
    parts, depth, begin = [], 0, 0
    for position, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[begin:position].strip())
            begin = position + 1
    last = text[begin:].strip()
    return [*parts, last] if last or parts else []


def read_integer(text: str) -> int:
    """``-5``, ``0x1F``, ``3U``.

    Raises:
        ValueError: It is none of these.
    """
    text = text.strip()
    if not _INTEGER.fullmatch(text):
        raise ValueError(f"{text!r} is no integer")
    return int(text.rstrip("U"), 0)


def read_operand(text: str, rename: Rename) -> Operand:
    """One operand; ``rename`` gives a register or label the name that its scope gives it.

    Raises:
        ValueError: It has no known form.
    """
    text = text.strip()
    if text == "_":
        return Sink()
    if text[:1] in _CLOSING and text[-1:] == _CLOSING[text[0]]:
        inside = text[1:-1]
        if text[0] == "[":
            return _read_address(inside, rename)
        return Vector(tuple(read_operand(part, rename) for part in split_operands(inside)))
    if match := _FLOAT.fullmatch(text):
        width = 32 if match[1] in "fF" else 64
        if len(match[2]) * 4 != width:
            raise ValueError(f"{text!r} has a wrong number of digits")
        return Immediate(int(match[2], 16), width)
    if _INTEGER.fullmatch(text):
        return Immediate(read_integer(text))
    if "|" in text:
        first, second = text.split("|")
        return Pair(read_operand(first, rename), read_operand(second, rename))
    return _read_name(text, rename)


def _read_name(text: str, rename: Rename) -> Register | Symbol:
    negated = text.startswith("!")
    name = text.removeprefix("!").strip()
    if not re.fullmatch(r"[%$\w.]+", name):
        raise ValueError(f"{text!r} is no operand")
    renamed = rename(name)
    if renamed.startswith("%"):
        return Register(renamed, negated)
    return Symbol(renamed)


def _read_address(text: str, rename: Rename) -> Address:
    parts = split_operands(text)
    if len(parts) == 2:
        base = _read_name(parts[0], rename)
        coordinates = read_operand(parts[1], rename)
        if not isinstance(coordinates, Vector):
            raise ValueError(f"{parts[1]!r} are no coordinates")
        return Address(base, 0, coordinates.items)
    match = re.fullmatch(r"\s*([%$\w.]+)\s*(?:\+\s*(-?\w+)\s*)?", text)
    if not match:
        raise ValueError(f"[{text}] is no address")
    offset = read_integer(match[2]) if match[2] else 0
    if _INTEGER.fullmatch(match[1]):
        return Address(Immediate(read_integer(match[1])), offset)
    return Address(_read_name(match[1], rename), offset)
