"""How large each input is when a run is to have a number of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe_export.errors import UsageError
from moe_export.runners.arrays import Array

Size = int | str


def token_axes(shape: Sequence[Size], dtype: str) -> tuple[int, ...]:
    """The axes of an input whose sizes multiply to its number of tokens.

    Batch and sequence of rank-3 floats and rank-2 integers; else axis 0, such as rows or images.
    """
    ids = len(shape) == 2 and "int" in dtype
    return (0, 1) if len(shape) == 3 or ids else (0,)


def count_tokens(signature: Sequence[Mapping[str, Any]], inputs: Mapping[str, Array]) -> int:
    """Tokens of a run, by the shape of the first input."""
    first = signature[0]
    array = inputs[first["name"]]
    axes = token_axes(array.shape, first["dtype"])
    return int(np.prod([array.shape[axis] for axis in axes if axis < array.ndim]))


def input_shapes(
    signature: Sequence[Mapping[str, Any]], tokens: int, example: Mapping[str, Array]
) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs for ``tokens`` tokens in all: one sequence where its length may vary.

    Args:
        signature: The manifest's ``inputs``: name, dtype, shape with names for sizes that vary.
        tokens: Wanted total.
        example: The bundle's example; sizes that the tokens do not decide are taken from it.

    Raises:
        UsageError: the first input's fixed sizes do not allow so many tokens.
    """
    sizes = _bind(signature[0], tokens)
    for spec in signature:
        for axis, size in enumerate(spec["shape"]):
            if isinstance(size, str) and size.isidentifier():
                sizes.setdefault(size, example[spec["name"]].shape[axis])
    return {
        spec["name"]: tuple(_size(spec["name"], size, sizes) for size in spec["shape"])
        for spec in signature
    }


def _bind(first: Mapping[str, Any], tokens: int) -> dict[str, int]:
    """Sizes of the first input's token axes by name; their product is ``tokens``."""
    shape: Sequence[Size] = first["shape"]
    axes = [axis for axis in token_axes(shape, first["dtype"]) if axis < len(shape)]
    fixed = int(np.prod([size for axis in axes if isinstance(size := shape[axis], int)]))
    # The innermost takes what the others leave: one long sequence.
    named = [str(shape[axis]) for axis in axes if isinstance(shape[axis], str)]
    if tokens % fixed or (not named and tokens != fixed):
        wanted = f"a multiple of {fixed}" if named else f"{fixed}"
        raise UsageError(
            f"--tokens {tokens}: input {first['name']} is {list(shape)}, so that a run has "
            f"{wanted} tokens; choose such numbers, or build with the axis dynamic"
        )
    return dict.fromkeys(named, 1) | dict.fromkeys(named[-1:], tokens // fixed)


def _size(name: str, size: Size, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    if size not in sizes:
        raise UsageError(
            f"input {name} has a size {size!r} that follows from others: pass --inputs FILE.npz"
        )
    return sizes[size]
