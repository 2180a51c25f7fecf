"""Record one eager run: who was called with what, and where tensors were selected by value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moe_export.runners.selections import SelectionMode


@dataclass
class ModuleCall:
    """One call of a module in eager."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any = None


@dataclass
class Recording:
    """What happened in one eager run.

    Attributes:
        calls: Calls of each module in order.
        selections: For each selection, the modules that were running, outermost first.
        other: A run on other inputs, in which layers may be called in other ways.
    """

    calls: dict[nn.Module, list[ModuleCall]] = field(default_factory=dict)
    selections: list[tuple[str, tuple[nn.Module, ...]]] = field(default_factory=list)
    other: Recording | None = None

    def all_calls(self, module: nn.Module) -> list[ModuleCall]:
        """Calls of a module in this run and in the other."""
        other = self.other.calls if self.other else {}
        return [*self.calls.get(module, []), *other.get(module, [])]


@contextmanager
def recording(model: nn.Module) -> Iterator[Recording]:
    """Record the eager runs of ``model`` inside the block."""
    record, stack = Recording(), list[nn.Module]()

    def note(func: Any, _args: tuple[Any, ...]) -> None:  # noqa: ANN401 - an operator overload
        record.selections.append((func.name(), tuple(stack)))

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack.append(module)
        record.calls.setdefault(module, []).append(ModuleCall(args, kwargs))

    def leave(module: nn.Module, _args: object, _kwargs: object, result: Any) -> None:  # noqa: ANN401
        stack.pop()
        last = next(c for c in reversed(record.calls[module]) if c.result is None)
        last.result = result

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        with torch.no_grad(), SelectionMode(note):
            yield record
    finally:
        for handle in handles:
            handle.remove()


def called_in_chain(record: Recording, members: list[nn.Module]) -> bool:
    """Whether the modules ran one after the other, each on the result of the one before."""
    calls = [record.calls.get(m, []) for m in members]
    if any(len(c) != 1 for c in calls):
        return False
    results = [_first_tensor(c[0].result) for c in calls]
    inputs = [_first_tensor((c[0].args, c[0].kwargs)) for c in calls]
    return all(
        r is not None and i is not None and r.shape == i.shape and r.data_ptr() == i.data_ptr()
        for r, i in zip(results[:-1], inputs[1:], strict=True)
    )


def _first_tensor(value: object) -> Tensor | None:
    leaves = torch.utils._pytree.tree_leaves(value)
    return next((leaf for leaf in leaves if isinstance(leaf, Tensor)), None)
