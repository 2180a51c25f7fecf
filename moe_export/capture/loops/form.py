"""What a function that loops over tokens may compute, and the proof that it does."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from moe_export.tolerances import LOOP_TOLERANCE, relative_error

Arguments = Mapping[str, Any]
_SCALARS = (type(None), bool, int, float, str)

# Batches and lengths tried: one token, several, and more than one chunk of 64, with a rest behind
# the last one.
_SIZES = ((1, 1), (3, 6), (1, 65), (1, 130))


@dataclass(frozen=True)
class LoopForm:
    """A computation over tokens that models write as a loop, and its form without one.

    Attributes:
        name: For people.
        compute: Takes the function's arguments by name and returns what it returns, with a
            recurrence's operator in place of the loop.
        draw: Arguments like those of a call, at another batch and length: ``(arguments, batch,
            length, generator)``.
        widths: The arguments that hold tensors, and of each the axes whose size is the model's;
            the others are batch and length. ``draw`` replaces all of them, for which it may read
            their types and these sizes, but no values: they come from tracing.
        parameters: What a function must take to be tried.
        attributes: What a module must have, where the loop is in its ``forward``; empty for
            functions.
        longest: A length to try beyond those that are always tried, where chunks are longer.
    """

    name: str
    compute: Callable[..., Any]
    draw: Callable[[Arguments, int, int, torch.Generator], dict[str, Any]]
    widths: Mapping[str, tuple[int, ...]]
    parameters: frozenset[str]
    attributes: frozenset[str] = frozenset()
    longest: int | None = None


@dataclass(frozen=True)
class LoopProof:
    """How a function compared with its form.

    Attributes:
        max_error: The largest difference, relative to the largest value.
        longest: The largest length tried.
        failure: What was found instead; empty if it is proved.
    """

    max_error: float = 0.0
    longest: int = 0
    failure: str = ""


def call_arguments(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name, defaults too.

    Without those that the function takes as ``**kwargs`` and never looks at, such as positions
    that go through all layers.
    """
    signature = inspect.signature(function)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            others = arguments.pop(name)
            code = getattr(inspect.unwrap(function), "__code__", None)
            if code is None or any(i.argval == name for i in dis.get_instructions(code)):
                arguments |= others
    return arguments


def call_key(form: LoopForm, arguments: Arguments) -> Hashable | None:
    """What two calls share for which one proof is enough.

    None if there are arguments that the proof cannot vary.
    """
    key: list[Hashable] = []
    for name, value in arguments.items():
        leaves = pytree.tree_leaves(value)
        if name in form.widths and all(isinstance(leaf, Tensor) for leaf in leaves):
            for leaf in leaves:
                sizes = [leaf.shape[axis] for axis in form.widths[name] if axis < leaf.dim()]
                if not all(isinstance(size, int) for size in sizes):
                    return None
                key.append((name, leaf.dtype, leaf.dim(), *sizes))
        elif isinstance(value, _SCALARS):
            key.append((name, value))
        else:
            return None
    return tuple(key)


def prove(
    form: LoopForm,
    compute: Callable[..., Any],
    original: Callable[..., Any],
    arguments: Arguments,
) -> LoopProof:
    """Compare ``original`` with its form on random arguments like those of one of its calls.

    Args:
        form: Draws the arguments.
        compute: The form's computation.
        original: The model's function.
        arguments: Of the call.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = _SIZES if form.longest is None else (*_SIZES, (1, form.longest))
    worst = 0.0
    for batch, length in sizes:
        drawn = form.draw(arguments, batch, length, generator)
        try:
            expected, found = original(**drawn), compute(**drawn)
        except Exception as error:
            return LoopProof(failure=f"fails at {length} tokens: {type(error).__name__}: {error}")
        error_here = _difference(found, expected)
        if not error_here <= LOOP_TOLERANCE:
            return LoopProof(failure=f"differs by {error_here:.1e} at {length} tokens")
        worst = max(worst, error_here)
    return LoopProof(worst, sizes[-1][1])


def _difference(found: object, expected: object) -> float:
    leaves, spec = pytree.tree_flatten(found)
    others, other_spec = pytree.tree_flatten(expected)
    if spec != other_spec or [type(x) for x in leaves] != [type(x) for x in others]:
        return float("inf")
    tensors = [(a, b) for a, b in zip(leaves, others, strict=True) if isinstance(b, Tensor)]
    if any(a.dtype != b.dtype for a, b in tensors):
        return float("inf")
    errors = (relative_error(a.float().numpy(), b.float().numpy()) for a, b in tensors)
    return max(errors, default=float("inf"))
