"""What PTX text says, as records: kernels, declarations and statements with their operands."""

from __future__ import annotations

from dataclasses import dataclass


class PtxError(Exception):
    """PTX text that this package cannot read or translate, with the line and the statement."""


@dataclass(frozen=True)
class Register:
    """A general register, a predicate, or a special register such as ``%tid.x``."""

    name: str
    negated: bool = False


@dataclass(frozen=True)
class Immediate:
    """A constant: an integer, or the bits of a floating-point number with their width."""

    value: int
    float_bits: int = 0


@dataclass(frozen=True)
class Symbol:
    """A name of a variable, parameter, label or function."""

    name: str


@dataclass(frozen=True)
class Address:
    """``[base + offset]``, or ``[base, {coordinates}]`` of a tensor map."""

    base: Register | Symbol | Immediate
    offset: int = 0
    coordinates: tuple[Operand, ...] = ()


@dataclass(frozen=True)
class Vector:
    """``{a, b, ...}``."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """``d|p``: two results of one statement."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Sink:
    """``_``: a result that nobody wants."""


Operand = Register | Immediate | Symbol | Address | Vector | Pair | Sink


@dataclass(frozen=True)
class Statement:
    """One instruction.

    Attributes:
        line: Where it is in the text, from 1.
        text: As written, on one line.
        guard: The predicate it depends on.
        opcode: Its first word, ``cvt`` of ``cvt.rn.f16.f32``.
        modifiers: The other words, in order.
        operands: As written, results first.
    """

    line: int
    text: str
    guard: Register | None
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class Label:
    """A place that branches go to."""

    line: int
    name: str


@dataclass(frozen=True)
class BranchTargets:
    """``name: .branchtargets a, b;``: where ``brx.idx`` goes to."""

    line: int
    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Variable:
    """A declared array or scalar.

    Attributes:
        name: Its name in PTX.
        space: State space: ``global``, ``const``, ``shared``, ``local`` or ``param``.
        align: Bytes.
        size: Bytes; 0 for ``extern .shared x[]``, whose size the launch gives.
        data: Initial bytes, zero where nothing is said.
        type: Of an element: ``b8``, ``u32``...
        is_array: Whether it was declared with brackets.
    """

    name: str
    space: str
    align: int
    size: int
    data: bytes
    type: str
    is_array: bool


@dataclass(frozen=True)
class Kernel:
    """One ``.entry``.

    Attributes:
        name: Its name in PTX.
        line: Where it begins.
        parameters: In order, state space ``param``.
        registers: Name to type, ``%r1`` to ``b32``; of nested scopes under names of their own.
        variables: Declared in its body, state spaces ``local`` and ``shared``.
        body: Statements, labels and targets in order.
        threads: ``.reqntid``, or 0 where any block size will do.
    """

    name: str
    line: int
    parameters: tuple[Variable, ...]
    registers: dict[str, str]
    variables: tuple[Variable, ...]
    body: tuple[Statement | Label | BranchTargets, ...]
    threads: int


@dataclass(frozen=True)
class Module:
    """One PTX text: its ``.target``, variables outside of kernels, and kernels."""

    target: str
    variables: tuple[Variable, ...]
    kernels: tuple[Kernel, ...]
