"""Reads PTX text as Triton and nvcc write it."""

from __future__ import annotations

import re
import struct
from bisect import bisect_left
from dataclasses import dataclass, field

from tests.ptx.operands import read_integer, read_operand, split_operands
from tests.ptx.records import (
    BranchTargets,
    Kernel,
    Label,
    Module,
    Operand,
    PtxError,
    Register,
    Statement,
    Variable,
)

TYPE_BYTES = {
    **{f"{kind}{bits}": bits // 8 for kind in "bsu" for bits in (8, 16, 32, 64)},
    "pred": 1,
    "f16": 2,
    "bf16": 2,
    "f16x2": 4,
    "bf16x2": 4,
    "f32": 4,
    "f32x2": 8,
    "f64": 8,
    "b128": 16,
}

_LABEL = re.compile(r"([$%\w]+)\s*:(?!:)")
_STATEMENT = re.compile(r"(?:@(!?)\s*([%\w]+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?", re.S)
_ONE_LINE = re.compile(r"\.(version|address_size|file|loc)\s")
_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(global|const|shared|local|param)\s+"
    r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?"
    r"([$%\w]+)\s*(\[\s*\d*\s*\])?\s*(?:=\s*(.*))?",
    re.S,
)


def parse(text: str) -> Module:
    """Reads one PTX text.

    Raises:
        PtxError: Something in it has no known form; names the line.
    """
    return _Reader(_without_comments(text)).read_module()


def _without_comments(text: str) -> str:
    """The text with spaces for comments, so that lines keep their numbers."""
    return re.sub(
        r"//[^\n]*|/\*.*?\*/", lambda match: re.sub(r"[^\n]", " ", match[0]), text, flags=re.S
    )


@dataclass
class _Scope:
    """Names declared between a pair of braces, and what they are called in all of the kernel."""

    suffix: str
    names: dict[str, str] = field(default_factory=dict)

    def declare_register(self, name: str) -> str:
        """Registers begin with % whatever PTX calls them."""
        self.names[name] = "%" + name.removeprefix("%") + self.suffix
        return self.names[name]

    def declare_label(self, name: str) -> None:
        self.names[name] = name + self.suffix


@dataclass
class _Body:
    """A kernel's body as far as it is read."""

    registers: dict[str, str] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    lines: list[Statement | Label | BranchTargets] = field(default_factory=list)
    scopes: list[_Scope] = field(default_factory=lambda: [_Scope("")])
    num_scopes: int = 0

    def rename(self, name: str) -> str:
        for scope in reversed(self.scopes):
            if name in scope.names:
                return scope.names[name]
        return name


class _Reader:
    def __init__(self, text: str):
        self._text = text
        self._position = 0
        self._line_ends = [place for place, sign in enumerate(text) if sign == "\n"]

    # What comes next

    def _skip_space(self) -> None:
        while self._position < len(self._text) and self._text[self._position].isspace():
            self._position += 1

    def _at_end(self) -> bool:
        self._skip_space()
        return self._position >= len(self._text)

    def _rest_starts(self, *words: str) -> bool:
        return self._text.startswith(words, self._position)

    def _line(self) -> int:
        return bisect_left(self._line_ends, self._position) + 1

    def _take_until(self, stop: str) -> str:
        end = self._text.find(stop, self._position)
        if end < 0:
            raise PtxError(f"PTX line {self._line()}: no {stop!r} ends what begins here")
        taken = self._text[self._position : end]
        self._position = end + len(stop)
        return taken.strip()

    # Outside of kernels

    def read_module(self) -> Module:
        target, variables, kernels = "", [], []
        while not self._at_end():
            line = self._line()
            if self._rest_starts(".target"):
                target = self._take_until("\n").removeprefix(".target").strip()
            elif _ONE_LINE.match(self._text, self._position):
                self._take_until("\n")
            elif self._rest_starts(".section"):
                self._take_until("}")
            elif re.match(r"(\.(visible|weak)\s+)*\.entry\b", self._text[self._position :][:80]):
                kernels.append(self._read_kernel())
            else:
                variables.append(_read_variable(self._take_until(";"), line))
        return Module(target, tuple(variables), tuple(kernels))

    def _read_kernel(self) -> Kernel:
        line = self._line()
        head = self._take_until("{")
        match = re.fullmatch(r".*?\.entry\s+([$\w]+)\s*(?:\((.*?)\))?\s*(\..*)?", head, re.S)
        if not match:
            raise PtxError(f"PTX line {line}: no known form of an entry: {head.splitlines()[0]}")
        parameters = tuple(_read_variable(p, line) for p in split_operands(match[2] or ""))
        threads = 1
        if required := re.search(r"\.reqntid\s+([\d, ]+)", match[3] or ""):
            for size in required[1].split(","):
                threads *= int(size)
        body = self._read_body()
        return Kernel(
            match[1],
            line,
            parameters,
            body.registers,
            tuple(body.variables),
            tuple(body.lines),
            threads if required else 0,
        )

    # Inside of a kernel

    def _read_body(self) -> _Body:
        body = _Body()
        while True:
            if self._at_end():
                raise PtxError(f"PTX line {self._line()}: a kernel has no end")
            if self._rest_starts("{"):
                self._position += 1
                self._open_scope(body)
            elif self._rest_starts("}"):
                self._position += 1
                body.scopes.pop()
                if not body.scopes:
                    return body
            else:
                self._read_line(body)

    def _open_scope(self, body: _Body) -> None:
        """Labels are seen before they are declared, so they are collected first."""
        body.num_scopes += 1
        scope = _Scope(f"_s{body.num_scopes}")
        end, depth = self._position, 1
        while depth and end < len(self._text):
            depth += {"{": 1, "}": -1}.get(self._text[end], 0)
            end += 1
        for line in re.split(r"[;{}\n]", self._text[self._position : end]):
            if match := _LABEL.match(line.strip()):
                scope.declare_label(match[1])
        body.scopes.append(scope)

    def _read_line(self, body: _Body) -> None:
        line = self._line()
        if match := _LABEL.match(self._text, self._position):
            self._position = match.end()
            self._read_label(body, line, body.rename(match[1]))
        elif _ONE_LINE.match(self._text, self._position):
            self._take_until("\n")
        elif self._rest_starts(".pragma"):
            self._take_until(";")
        elif self._rest_starts(".reg"):
            _declare_registers(body, self._take_until(";"), line)
        elif self._rest_starts("."):
            body.variables.append(_read_variable(self._take_until(";"), line))
        else:
            body.lines.append(_read_statement(self._take_until(";"), line, body))

    def _read_label(self, body: _Body, line: int, name: str) -> None:
        self._skip_space()
        if self._rest_starts(".branchtargets"):
            names = self._take_until(";").removeprefix(".branchtargets")
            labels = tuple(body.rename(label) for label in split_operands(names))
            body.lines.append(BranchTargets(line, name, labels))
        else:
            body.lines.append(Label(line, name))


def _declare_registers(body: _Body, text: str, line: int) -> None:
    match = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S)
    if not match or match[1] not in TYPE_BYTES:
        raise PtxError(f"PTX line {line}: no known form of registers: {text}")
    scope = body.scopes[-1]
    for name in split_operands(match[2]):
        count = re.fullmatch(r"([%$\w]+)<(\d+)>", name)
        names = [f"{count[1]}{i}" for i in range(int(count[2]))] if count else [name]
        body.registers.update({scope.declare_register(each): match[1] for each in names})


def _read_statement(text: str, line: int, body: _Body) -> Statement:
    text = " ".join(text.split())
    match = _STATEMENT.fullmatch(text)
    if not match:
        raise PtxError(f"PTX line {line}: {text}: no known form of a statement")
    try:
        guard = None
        if match[2]:
            guard = Register(body.rename(match[2]), negated=bool(match[1]))
        opcode, *modifiers = match[3].split(".")
        operands: list[Operand] = [
            read_operand(part, body.rename) for part in split_operands(match[4] or "")
        ]
    except ValueError as error:
        raise PtxError(f"PTX line {line}: {text}: {error}") from error
    return Statement(line, text, guard, opcode, tuple(modifiers), tuple(operands))


def _read_variable(text: str, line: int) -> Variable:
    match = _VARIABLE.fullmatch(text.strip())
    if not match or match[3] not in TYPE_BYTES:
        raise PtxError(f"PTX line {line}: no known form of a declaration: {text.strip()}")
    space, align, type_, name, brackets, values = match.groups()
    element = TYPE_BYTES[type_]
    count = int(brackets.strip("[] ") or 0) if brackets else 1
    try:
        data = _read_data(values, type_) if values else b""
    except ValueError as error:
        raise PtxError(f"PTX line {line}: {name}: {error}") from error
    return Variable(
        name, space, int(align or element), count * element, data, type_, bool(brackets)
    )


def _read_data(text: str, type_: str) -> bytes:
    """The bytes of ``{1, 2, 0f3F800000}`` or of one number.

    Raises:
        ValueError: Something is no number: an address, say.
    """
    data = b""
    for value in split_operands(text.strip().removeprefix("{").removesuffix("}")):
        size = TYPE_BYTES[type_]
        if match := re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", value):
            data += int(match[1], 16).to_bytes(size, "little")
        elif type_.startswith("f"):
            data += struct.pack("<f" if type_ == "f32" else "<d", float(value))
        else:
            data += (read_integer(value) % (1 << 8 * size)).to_bytes(size, "little")
    return data
