"""Notice where eager picks something by value: experts of a token, or tokens of an expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten

TOP_K = {_aten.topk.default}
TOP_ONE = {_aten.max.dim, _aten.argmax.default}
SORTS = {_aten.sort.default, _aten.sort.stable, _aten.argsort.default}
_OTHERS = {
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.multinomial.default,
    _aten._local_scalar_dense.default,
}

# Receives the operator and its positional arguments.
OnSelection = Callable[[Any, tuple[Any, ...]], None]


class SelectionMode(TorchDispatchMode):
    """Calls ``on_selection`` before each operator that picks by value.

    Args:
        on_selection: Receives the operator and its positional arguments.
    """

    def __init__(self, on_selection: OnSelection) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_selection = on_selection

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self,
        func,  # noqa: ANN001 - an operator overload
        types,  # noqa: ANN001
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func in TOP_K | TOP_ONE | SORTS | _OTHERS or _is_mask_index(func, args):
            self._on_selection(func, args)
        return func(*args, **(kwargs or {}))


def _is_mask_index(func: object, args: tuple[Any, ...]) -> bool:
    if func is not _aten.index.Tensor:
        return False
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
