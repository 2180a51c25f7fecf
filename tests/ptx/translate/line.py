"""One statement while it becomes C++: its modifiers are taken one by one, its operands written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tests.ptx.parse import TYPE_BYTES
from tests.ptx.records import (
    Address,
    Immediate,
    Operand,
    PtxError,
    Register,
    Sink,
    Statement,
    Symbol,
    Vector,
)

T = TypeVar("T")

_AXES = {"x": 0, "y": 1, "z": 2}


class UnsupportedPtxError(PtxError):
    """A statement, modifier or form that has no translation."""


@dataclass(frozen=True)
class Names:
    """What a kernel's names are in C++.

    Attributes:
        registers: Type of each register.
        values: What a symbol stands for where it is an operand: an offset of shared memory, or an
            address.
        parameters: Position and bytes of each parameter.
        labels: Where branches can go.
        targets: Labels that each list of branch targets names.
        results: Lists of registers that products of wgmma may be under way to.
    """

    registers: Mapping[str, str]
    values: Mapping[str, str]
    parameters: Mapping[str, tuple[int, int]]
    labels: frozenset[str]
    targets: Mapping[str, tuple[str, ...]]
    results: tuple[tuple[Operand, ...], ...]


class Line:
    """One statement; ``translate`` asks it for what the opcode needs."""

    def __init__(self, statement: Statement, names: Names):
        self.statement = statement
        self.names = names
        self.number = statement.line
        self._modifiers = list(statement.modifiers)

    def refuse(self, reason: str) -> UnsupportedPtxError:
        return UnsupportedPtxError(f"PTX line {self.number}: {self.statement.text}: {reason}")

    # Modifiers

    def take(self, *words: str) -> bool:
        """Whether one of the words is among the modifiers, which it then no longer is."""
        for word in words:
            if word in self._modifiers:
                self._modifiers.remove(word)
                return True
        return False

    def choose(self, options: Mapping[str, T], default: T | None = None) -> T:
        """What the one modifier among ``options`` stands for."""
        for word, value in options.items():
            if word in self._modifiers:
                self._modifiers.remove(word)
                return value
        if default is None:
            raise self.refuse(f"none of {', '.join(options)} is among its modifiers")
        return default

    def take_first(self, *words: str) -> bool:
        """Whether the modifiers begin with these words, which are then taken."""
        if tuple(self._modifiers[: len(words)]) != words:
            return False
        del self._modifiers[: len(words)]
        return True

    def take_matching(self, pattern: str) -> re.Match[str] | None:
        """The first modifier of that form, which is then taken."""
        for word in self._modifiers:
            if match := re.fullmatch(pattern, word):
                self._modifiers.remove(word)
                return match
        return None

    def type(self) -> str:
        """The last modifier, which is a type."""
        if not self._modifiers or self._modifiers[-1] not in TYPE_BYTES:
            raise self.refuse("its type is not known")
        return self._modifiers.pop()

    def finish(self) -> None:
        """Refuses modifiers that nobody took."""
        if self._modifiers:
            raise self.refuse(f"unknown modifier .{self._modifiers[0]}")

    def how(self) -> str:
        """Rounding and the like as a template argument, empty where there is nothing to say."""
        rounding = self.choose({word: word for word in ("rn", "rz", "rm", "rp")}, "rn")
        flags = [self.take(word) for word in ("ftz", "sat", "NaN", "relu")]
        if rounding == "rn" and not any(flags):
            return ""
        return f", How<{rounding}, {', '.join(str(flag).lower() for flag in flags)}>"

    # Operands

    def operands(self, *counts: int) -> tuple[Operand, ...]:
        """All operands, of which there are as many as one of ``counts``."""
        if len(self.statement.operands) not in counts:
            raise self.refuse(f"has {len(self.statement.operands)} operands")
        return self.statement.operands

    def value(self, operand: Operand, type_: str, *, wider: bool = False) -> str:
        """An operand that is read. ``wider``: a register may have more bits than the type."""
        match operand:
            case Immediate(value, 0):
                return _literal(value, type_)
            case Immediate(value, bits) if bits == 8 * TYPE_BYTES[type_]:
                return f"{value:#x}u" if bits == 32 else f"{value:#x}ull"
            case Register(name, negated):
                text = self._register(name, type_, wider)
                return f"!{text}" if negated else text
            case Symbol(name) if name in self.names.values:
                return self.names.values[name]
        raise self.refuse(f"cannot read {operand}")

    def target(self, operand: Operand, type_: str, *, wider: bool = False) -> str:
        """An operand that is written."""
        match operand:
            case Register(name, False) if name in self.names.registers:
                return self._register(name, type_, wider)
        raise self.refuse(f"cannot write {operand}")

    def items(self, operand: Operand) -> tuple[Operand, ...]:
        """The parts of a vector; of anything else it alone."""
        return operand.items if isinstance(operand, Vector) else (operand,)

    def assign(self, targets: tuple[Operand, ...], type_: str, words: str) -> str:
        """``words[i]`` to each target but sinks."""
        return " ".join(
            f"{self.target(target, type_, wider=True)} = {words}[{i}];"
            for i, target in enumerate(targets)
            if not isinstance(target, Sink)
        )

    def array(self, name: str, operand: Operand, type_: str = "b32") -> str:
        """A C++ array of the parts of a vector."""
        items = self.items(operand)
        values = ", ".join(self.value(item, type_) for item in items)
        return f"const uint32_t {name}[] = {{{values}}};"

    def address(self, operand: Operand) -> str:
        """The number between the brackets."""
        if not isinstance(operand, Address) or operand.coordinates:
            raise self.refuse(f"{operand} is no address")
        match operand.base:
            case Register(name):
                base = self._register(name, self.names.registers.get(name, ""), False)
            case Immediate(value):
                return _literal(value + operand.offset, "b64")
            case Symbol(name) if name in self.names.values:
                base = self.names.values[name]
            case _:
                raise self.refuse(f"{operand.base} is no address")
        return f"{base} + {operand.offset}" if operand.offset else base

    def shared(self, operand: Operand, size: int) -> str:
        """A checked pointer to ``size`` bytes of shared memory."""
        return f"at_shared(t, {self.number}, {self.address(operand)}, {size})"

    def label(self, operand: Operand) -> str:
        if not isinstance(operand, Symbol) or operand.name not in self.names.labels:
            raise self.refuse(f"there is no label {getattr(operand, 'name', operand)}")
        return cpp_label(operand.name)

    def _register(self, name: str, type_: str, wider: bool) -> str:
        if name in self.names.registers:
            has, needs = TYPE_BYTES[self.names.registers[name]], TYPE_BYTES[type_]
            is_predicate = self.names.registers[name] == "pred"
            if is_predicate != (type_ == "pred") or has < needs or (has > needs and not wider):
                raise self.refuse(f"{name} is no register of type {type_}")
            return cpp_register(name)
        return self._special(name)

    def _special(self, name: str) -> str:
        match = re.fullmatch(r"%(tid|ntid|ctaid|nctaid)\.([xyz])", name)
        if match and match[1] in ("ctaid", "nctaid"):
            return f"t.{match[1]}[{_AXES[match[2]]}]"
        if match and match[2] == "x":
            return f"t.{match[1]}"
        if match:
            return "0u" if match[1] == "tid" else "1u"
        lane_masks = {"eq": "1u << t.lane", "lt": "(1u << t.lane) - 1", "le": "(2u << t.lane) - 1"}
        lane_masks |= {"gt": "~((2u << t.lane) - 1)", "ge": "~((1u << t.lane) - 1)"}
        if match := re.fullmatch(r"%lanemask_(\w\w)", name):
            return f"({lane_masks[match[1]]})"
        special = {"%laneid": "t.lane", "%warpid": "(t.tid / kWarp)", "%WARP_SZ": "kWarp"}
        if name in special:
            return special[name]
        raise self.refuse(f"unknown register {name}")


def cpp_register(name: str) -> str:
    """``%r1`` as a C++ variable."""
    return "_" + name.removeprefix("%").replace("$", "_")


def cpp_label(name: str) -> str:
    """``$L__BB0_1`` as a C++ label."""
    return "label" + re.sub(r"\W", "_", name)


def _literal(value: int, type_: str) -> str:
    if type_ == "pred":
        return "true" if value else "false"
    if -(2**31) < value < 2**31:
        return f"({value})" if value < 0 else str(value)
    return f"{value % 2**64:#x}ull"


Translate = Callable[[Line], str]
OPCODES: dict[str, Translate] = {}


def translates(*opcodes: str) -> Callable[[Translate], Translate]:
    """Registers a function that writes one kind of statement in C++."""

    def register(function: Translate) -> Translate:
        for opcode in opcodes:
            OPCODES[opcode] = function
        return function

    return register


def translate_statement(statement: Statement, names: Names) -> str:
    """One statement as C++.

    Raises:
        UnsupportedPtxError: It has no translation; names the statement.
    """
    line = Line(statement, names)
    if statement.opcode not in OPCODES:
        raise line.refuse(f"unknown opcode {statement.opcode}")
    text = OPCODES[statement.opcode](line)
    line.finish()
    if statement.guard is None:
        return text
    return f"if ({line.value(statement.guard, 'pred')}) {{ {text} }}"
