"""Faults to plant in PTX, one statement at a time."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.ptx.parse import parse
from tests.ptx.records import Kernel, Statement

SWAPPED = {
    "add": "sub",
    "sub": "add",
    "min": "max",
    "max": "min",
    "and": "or",
    "or": "and",
    "shl": "shr",
    "lt": "le",
    "le": "lt",
    "gt": "ge",
    "ge": "gt",
    "eq": "ne",
    "ne": "eq",
}
"""Words of an opcode that stand for one another."""

_WAITS = ("bar", "barrier", "mbarrier")
_COPY_WAITS = ("commit_group", "wait_group", "wait_all")
_UNMODELLED = ("fence", "membar", "griddepcontrol", "prefetch", "createpolicy", "setmaxnreg")
_NUMBER = re.compile(r"(?<![\w%.$])-?(?:0x[0-9a-fA-F]+|\d+)(?![\w.])")
_REGISTER = re.compile(r"%[a-z]+\d+")
_NEAR = 40


@dataclass(frozen=True)
class Mutation:
    """One statement written otherwise.

    Attributes:
        line: Of the statement, from 1.
        before: The statement.
        after: What stands there instead; empty where it is left out.
    """

    line: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.before}  ->  {self.after or '(left out)'}"


def list_mutations(text: str, count: int, seed: int = 0) -> list[Mutation]:
    """At most ``count`` mutations: every barrier and wait left out, then others that are drawn.

    Statements that the runner does not model, which are fences and advice, stay.
    """
    rng = random.Random(seed)
    waits, others = [], []
    for kernel in parse(text).kernels:
        statements = [s for s in kernel.body if isinstance(s, Statement) and _is_modelled(s)]
        for position, statement in enumerate(statements):
            if _waits(statement):
                waits.append(Mutation(statement.line, statement.text, ""))
                continue
            near = statements[max(0, position - _NEAR) : position]
            choices = list(_mutate(kernel, statement, near, rng))
            if choices:
                others.append(rng.choice(choices))
    rng.shuffle(waits)
    rng.shuffle(others)
    chosen = [m for m in [*waits, *others] if _find(text, m) is not None][:count]
    return sorted(chosen, key=lambda mutation: mutation.line)


def apply_mutation(text: str, mutation: Mutation) -> str:
    """The text with the one statement changed; all else keeps its line."""
    lines = text.split("\n")
    found = _find(text, mutation)
    if found is None:
        raise ValueError(f"there is no {mutation.before!r} at line {mutation.line}")
    lines[mutation.line - 1] = found
    return "\n".join(lines)


def find_mutation(
    text: str, pattern: str, replacement: str, *, entry: str = "", nth: int = 0
) -> Mutation:
    """What becomes of a statement that is known by its form rather than its line.

    Args:
        text: PTX.
        pattern: A regular expression that the statement begins with.
        replacement: What stands for the match; nothing leaves the statement out.
        entry: The kernel's name, if there are several.
        nth: Which of the statements that match, from 0.

    Raises:
        ValueError: There are not so many.
    """
    found = [
        statement
        for kernel in parse(text).kernels
        if kernel.name == entry or not entry
        for statement in kernel.body
        if isinstance(statement, Statement) and re.match(pattern, statement.text)
    ]
    if nth >= len(found):
        raise ValueError(f"{len(found)} statements of {entry or 'the kernel'} are like {pattern!r}")
    before = found[nth].text
    after = re.sub(pattern, replacement, before, count=1) if replacement else ""
    return Mutation(found[nth].line, before, after)


def _find(text: str, mutation: Mutation) -> str | None:
    """The line with the statement changed; None if it goes over several lines."""
    line = " ".join(text.split("\n")[mutation.line - 1].split())
    before = f"{mutation.before};"
    if before not in line:
        before = before.replace(";", " ;")
    if before not in line:
        return None
    return line.replace(before, f"{mutation.after};" if mutation.after else "", 1)


def _is_modelled(statement: Statement) -> bool:
    is_matrix_fence = statement.opcode == "wgmma" and "fence" in statement.modifiers
    return statement.opcode not in _UNMODELLED and not is_matrix_fence


def _waits(statement: Statement) -> bool:
    if statement.opcode in ("cp", "wgmma"):
        return any(word in statement.modifiers for word in _COPY_WAITS)
    return statement.opcode in _WAITS


def _mutate(
    kernel: Kernel, statement: Statement, near: list[Statement], rng: random.Random
) -> Iterator[Mutation]:
    """One mutation of each kind that the statement has."""
    text = statement.text
    if statement.opcode in ("ret", "exit", "bra"):
        if statement.guard is not None:
            yield Mutation(statement.line, text, _negate(text))
        return
    if statement.guard is not None:
        yield Mutation(statement.line, text, _negate(text))
    if statement.opcode in ("st", "red", "atom", "mma", "wgmma", "cp"):
        yield Mutation(statement.line, text, "")
    head, _, operands = text.partition(f"{statement.opcode}.")
    words = [statement.opcode, *operands.split(" ", 1)[0].split(".")]
    rest = text[len(head) + len(".".join(words)) :]
    for place, word in enumerate(words):
        if word in SWAPPED:
            swapped = [*words[:place], SWAPPED[word], *words[place + 1 :]]
            yield Mutation(statement.line, text, head + ".".join(swapped) + rest)
            break
    prefix = text[: len(text) - len(rest)]
    if changed := _change_number(rest, rng):
        yield Mutation(statement.line, text, prefix + changed)
    if changed := _change_register(kernel, rest, near, rng):
        yield Mutation(statement.line, text, prefix + changed)


def _negate(text: str) -> str:
    return re.sub(r"^@(!?)", lambda match: "@" if match[1] else "@!", text)


def _change_number(operands: str, rng: random.Random) -> str | None:
    numbers = list(_NUMBER.finditer(operands))
    if not numbers:
        return None
    chosen = rng.choice(numbers)
    value = int(chosen[0], 0) + rng.choice((-1, 1))
    return f"{operands[: chosen.start()]}{value}{operands[chosen.end() :]}"


def _change_register(
    kernel: Kernel, operands: str, near: list[Statement], rng: random.Random
) -> str | None:
    """A register that is read becomes another one of its type that was used just before."""
    # What follows a bar is a second result, a validity that hardly anybody reads.
    sources = [
        found
        for found in list(_REGISTER.finditer(operands))[1:]
        if found[0] in kernel.registers and operands[found.start() - 1] != "|"
    ]
    if not sources:
        return None
    chosen = rng.choice(sources)
    type_ = kernel.registers[chosen[0]]
    used = {name for statement in near for name in _REGISTER.findall(statement.text)}
    others = sorted(n for n in used if n != chosen[0] and kernel.registers.get(n) == type_)
    if not others:
        return None
    return f"{operands[: chosen.start()]}{rng.choice(others)}{operands[chosen.end() :]}"
