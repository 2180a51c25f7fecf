"""How a layer is called in the model, and calling it again with other tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.recorder import ModuleCall, Recording


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: its tensors, and all else it was called with.

    Attributes:
        where: The layer's path and class, for errors.
        module: The layer.
        leaves: Arguments as a flat list, tensors among them.
        spec: How the flat list makes ``(args, kwargs)``.
        slots: Positions of the tensors in ``leaves``.
        main: Which of the tensors holds the tokens.
        channel: Its axis of size H: the last one, or 1 for images ``[B, H, h, w]``.
    """

    where: str
    module: nn.Module
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    slots: tuple[int, ...]
    main: int
    channel: int = -1

    @property
    def width(self) -> int:
        """H."""
        return int(self.x.shape[self.channel])

    def rows(self, x: Tensor) -> Tensor:
        """The tokens ``[T, H]`` of a tensor like ``x``."""
        return x.movedim(self.channel, -1).reshape(-1, self.width)

    def point(self, x: Tensor) -> tuple[int, ...]:
        """Sizes of the tokens' axes in a tensor like ``x``."""
        return tuple(x.movedim(self.channel, -1).shape[:-1])

    def place(self, rows: Tensor, point: Sequence[int]) -> Tensor:
        """The tensor like ``x`` whose tokens are ``rows [T, H]``."""
        return rows.reshape(*point, self.width).movedim(-1, self.channel)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the recorded call."""
        return [self.leaves[slot] for slot in self.slots]

    @property
    def x(self) -> Tensor:
        """The tensor that holds the tokens."""
        return self.tensors[self.main]

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call with other tensors."""
        leaves = list(self.leaves)
        for slot, tensor in zip(self.slots, tensors, strict=True):
            leaves[slot] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs

    def run(self, tensors: Sequence[Tensor]) -> Any:  # noqa: ANN401 - whatever the layer returns
        """Call the layer in eager with other tensors."""
        args, kwargs = self.arguments([t.clone() for t in tensors])
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def pick(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The tensors of another call of the same form.

        Raises:
            UnsupportedModelError: it has other arguments, or another value where the recorded call
                has no tensor: what the layer makes of that was not recorded.
        """
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if spec != self.spec:
            raise UnsupportedModelError(
                f"{self.where} is called in two ways: {_say(self.spec)} and {_say(spec)}"
            )
        for number, (leaf, recorded) in enumerate(zip(leaves, self.leaves, strict=True)):
            if not _is_alike(leaf, recorded):
                raise UnsupportedModelError(
                    f"{self.where} is called with {_say_value(leaf)} as its argument {number + 1}, "
                    f"and with {_say_value(recorded)} on the example inputs: what it does with the "
                    "first was not recorded. Pass example inputs with which it is called alike"
                )
        return [leaves[slot] for slot in self.slots]

    def fits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether another call is of this form."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        return spec == self.spec and all(map(_is_alike, leaves, self.leaves))


def _is_alike(leaf: object, recorded: object) -> bool:
    if isinstance(recorded, Tensor) or isinstance(leaf, Tensor):
        return isinstance(recorded, Tensor) and isinstance(leaf, Tensor)
    return isinstance(leaf, type(recorded)) and leaf == recorded


def _say_value(leaf: object) -> str:
    return f"a tensor {list(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)


def _say(spec: pytree.TreeSpec) -> str:
    args, kwargs = spec.children()
    return f"{args.num_leaves} positional arguments and keywords {list(kwargs.context or [])}"


def find_layer_call(path: str, module: nn.Module, record: Recording) -> LayerCall:
    """How the layer is called first in ``record``; errors as ``find_layer_calls`` has them."""
    return find_layer_calls(path, module, record)[0]


def find_layer_calls(path: str, module: nn.Module, record: Recording) -> list[LayerCall]:
    """How the layer is called in ``record``, each form once, in order.

    Raises:
        UnsupportedModelError: it never runs, or takes no float tensor ``[..., H]``.
    """
    where = f"{path or '<root>'} ({type(module).__name__})"
    found: list[LayerCall] = []
    for call in record.all_calls(module):
        if not any(other.fits(call.args, dict(call.kwargs)) for other in found):
            found.append(_layer_call(where, module, call))
    if not found:
        raise UnsupportedModelError(f"{where} does not run on the example inputs")
    return found


def _layer_call(where: str, module: nn.Module, call: ModuleCall) -> LayerCall:
    leaves, spec = pytree.tree_flatten((call.args, dict(call.kwargs)))
    slots = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    floats = [
        n for n, i in enumerate(slots) if leaves[i].is_floating_point() and leaves[i].dim() >= 2
    ]
    if not floats:
        kinds = ", ".join(type(leaf).__name__ for leaf in leaves)
        raise UnsupportedModelError(
            f"{where} is called with ({kinds}); a float tensor [..., H] is expected among them"
        )
    opaque = [x for x in leaves if not isinstance(x, Tensor | bool | int | float | str | None)]
    if opaque:
        raise UnsupportedModelError(
            f"{where} is called with a {type(opaque[0]).__name__}, which cannot be probed"
        )
    found = LayerCall(where, module, tuple(leaves), spec, tuple(slots), floats[0])
    return dataclasses.replace(found, channel=1) if _has_channels_first(found) else found


def _has_channels_first(call: LayerCall) -> bool:
    """Whether an image's last axis can have another size, and its second cannot."""
    if call.x.dim() != 4:
        return False
    return _takes(call, axis=3) and not _takes(call, axis=1)


def _takes(call: LayerCall, axis: int) -> bool:
    tensors = call.tensors
    tensors[call.main] = torch.cat([call.x, call.x.narrow(axis, 0, 1)], dim=axis)
    try:
        call.run(tensors)
    except Exception:  # the layer's own code says no in its own way
        return False
    return True


@dataclass(frozen=True)
class OutputForm:
    """What a layer returns besides tensors: tuples, lists, dicts and dataclasses are understood.

    Attributes:
        record: The dataclass that is returned, if one is.
        spec: How a flat list makes the rest.
    """

    record: type[Any] | None
    spec: pytree.TreeSpec

    def rebuild(self, leaves: Sequence[Any]) -> Any:  # noqa: ANN401 - what the layer returns
        """Make a result of this form."""
        result = pytree.tree_unflatten(list(leaves), self.spec)
        return result if self.record is None else self.record(**result)


def flatten_result(result: Any) -> tuple[list[Any], OutputForm]:  # noqa: ANN401
    """A layer's result as a flat list, and its form."""
    record = None
    if dataclasses.is_dataclass(result) and not isinstance(result, (type, dict)):
        record = type(result)
        result = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    leaves, spec = pytree.tree_flatten(result)
    return leaves, OutputForm(record, spec)
