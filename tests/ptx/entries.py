"""The kernels of a PTX text, apart from each other."""

from __future__ import annotations

from collections.abc import Collection

from tests.ptx.parse import parse


def entry_lines(text: str) -> dict[str, range]:
    """The lines of each kernel, from 1, its closing brace among them."""
    lines = text.split("\n")
    found = {}
    for kernel in parse(text).kernels:
        depth, end = 0, kernel.line
        while True:
            code = lines[end - 1].partition("//")[0]
            depth += code.count("{") - code.count("}")
            if depth == 0 and "}" in code:
                break
            end += 1
        found[kernel.name] = range(kernel.line, end + 1)
    return found


def keep_entries(text: str, names: Collection[str]) -> str:
    """The text without all other kernels; what is left keeps its lines."""
    lines = text.split("\n")
    for name, place in entry_lines(text).items():
        if name not in names:
            lines[place.start - 1 : place.stop - 1] = [""] * len(place)
    return "\n".join(lines)


def changed_entries(before: str, after: str) -> list[str]:
    """Kernels of ``after`` that are not, line by line, those of ``before``."""
    texts = [
        {
            name: text.split("\n")[place.start - 1 : place.stop - 1]
            for name, place in entry_lines(text).items()
        }
        for text in (before, after)
    ]
    return [name for name, lines in texts[1].items() if lines != texts[0].get(name)]
