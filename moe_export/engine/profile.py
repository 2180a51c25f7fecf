"""The shapes that an engine takes: the least, the one it is optimized for, the largest."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.plan import AxisSpec
from moe_export.runners.fingerprint import Profile

# Largest sizes of axes that no range was asked for: a batch beside another axis, and all else.
MOST_IN_BATCH = 8
MOST_TOKENS = 2048
# The one axis that is empty as a rule: a cache before the first token.
MAY_BE_EMPTY = "past_sequence"
# What an axis of a graph with a cache is, of which a symbol of its own says nothing.
_TOTALS = {"total_sequence": ("past_sequence", "sequence")}


@dataclass(frozen=True)
class GraphInput:
    """An input of the graph.

    Attributes:
        name: Its name.
        sizes: Numbers, names of symbols, or sums and the like of them.
        example: The example's shape.
    """

    name: str
    sizes: tuple[int | str, ...]
    example: tuple[int, ...]


@dataclass(frozen=True)
class SymbolRange:
    """What one symbol may be, and what is optimized for.

    Attributes:
        symbol: Its name.
        axis: The first axis of that size, as ``--dynamic`` names it.
        least, best, largest: The sizes.
        asked: The user gave the range.
    """

    symbol: str
    axis: str
    least: int
    best: int
    largest: int
    asked: bool


def spell_totals(inputs: Sequence[GraphInput]) -> tuple[GraphInput, ...]:
    """The inputs with the sizes of a cache's mask as sums of what they count."""
    symbols = {size for item in inputs for size in item.sizes if isinstance(size, str)}
    sums = {t: " + ".join(parts) for t, parts in _TOTALS.items() if {*parts} <= symbols}
    return tuple(
        replace(item, sizes=tuple(sums.get(str(size), size) for size in item.sizes))
        for item in inputs
    )


def find_ranges(
    inputs: Sequence[GraphInput], dynamic: Iterable[AxisSpec], *, example_given: bool
) -> tuple[SymbolRange, ...]:
    """The range of every symbol.

    Args:
        inputs: The graph's inputs.
        dynamic: Axes with a range, as the user asked for them.
        example_given: The example is the user's: its sizes are what is optimized for. Otherwise
            the geometric middle of a range is.

    Raises:
        UsageError: ranges of one symbol do not overlap.
    """
    asked = {(spec.name, spec.axis): spec for spec in dynamic if spec.minimum is not None}
    found: dict[str, SymbolRange] = {}
    for item in inputs:
        for axis, size in enumerate(item.sizes):
            spec = asked.get((item.name, axis))
            if isinstance(size, int) or not size.isidentifier():
                if spec is not None:
                    raise UsageError(
                        f"--dynamic {item.name}.{axis}: its size is {size}; give ranges for the "
                        "axes that it follows from"
                    )
                continue
            known = found.get(size)
            if known is None or spec is not None:
                limits = _limits(item, axis, spec, known if known and known.asked else None)
                name = known.axis if known else f"{item.name}.{axis}"
                best = _best(limits, item.example[axis] if example_given else None)
                found[size] = SymbolRange(
                    size, name, limits[0], best, limits[1], asked=spec is not None
                )
    return tuple(found.values())


def _limits(
    item: GraphInput, axis: int, spec: AxisSpec | None, known: SymbolRange | None
) -> tuple[int, int]:
    if spec is None:
        symbols = [size for size in item.sizes if isinstance(size, str)]
        most = MOST_IN_BATCH if axis == 0 and len(symbols) > 1 else MOST_TOKENS
        return int(item.sizes[axis] != MAY_BE_EMPTY), max(most, item.example[axis])
    least, largest = spec.minimum or 0, spec.maximum or MOST_TOKENS
    if known is not None:
        least, largest = max(least, known.least), min(largest, known.largest)
    if least > largest:
        raise UsageError(
            f"--dynamic {item.name}.{axis}: {item.sizes[axis]} is given two ranges without a size "
            "in common"
        )
    return least, largest


def _best(limits: tuple[int, int], example: int | None) -> int:
    least, largest = limits
    best = round(math.sqrt(max(least, 1) * largest)) if example is None else example
    return min(max(best, least), largest)


def make_profile(inputs: Sequence[GraphInput], ranges: Iterable[SymbolRange]) -> Profile:
    """Shapes of every input that has a symbol among its sizes.

    Raises:
        UnsupportedModelError: a size is no arithmetic on symbols that inputs have.
    """
    known = {r.symbol: (r.least, r.best, r.largest) for r in ranges}
    profile = {}
    for item in inputs:
        if all(isinstance(size, int) for size in item.sizes):
            continue
        least, best, largest = (
            tuple(
                _size(item, size, {s: sizes[n] for s, sizes in known.items()})
                for size in item.sizes
            )
            for n in range(3)
        )
        profile[item.name] = (least, best, largest)
    return profile


def _size(item: GraphInput, size: int | str, values: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    try:
        return _evaluate(ast.parse(size, mode="eval").body, values)
    except (SyntaxError, ValueError, KeyError) as error:
        raise UnsupportedModelError(
            f"input {item.name} has an axis of size {size}, which does not follow from the sizes "
            f"of other axes ({', '.join(values)})"
        ) from error


def _evaluate(node: ast.expr, values: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, values), _evaluate(node.right, values)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
    raise ValueError(ast.unparse(node))


def describe_ranges(ranges: Sequence[SymbolRange]) -> str:
    """One line for people: what the engine takes, and how to have it otherwise."""
    parts = [f"{r.symbol} {r.least} to {r.largest} (best at {r.best})" for r in ranges]
    free = [f"--dynamic {r.axis}=MIN..MAX" for r in ranges if not r.asked]
    more = f"; otherwise with {', '.join(free)}" if free else ""
    return f"the engine takes {', '.join(parts)}{more}"
