"""Spell complex arithmetic, such as that of rotary embeddings, so that ONNX has words for it.

ONNX knows no complex numbers; ``torch.onnx`` writes them as pairs on a last axis, and has most
operators for such pairs. Those that it lacks are traced here as what they do to the pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_PRODUCTS = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
_UNSQUEEZE = (torch.unsqueeze, Tensor.unsqueeze)


class ComplexAsPairs(TorchFunctionMode):
    """Inside, complex tensors are indexed, unsqueezed and scaled by real numbers as pairs."""

    def __torch_function__(  # type: ignore[no-untyped-def]
        self,
        func,  # noqa: ANN001
        types,  # noqa: ANN001
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if kwargs or len(args) != 2 or not (isinstance(args[0], Tensor) and args[0].is_complex()):
            return func(*args, **kwargs)
        value, other = args
        if func is Tensor.__getitem__:
            return torch.view_as_complex(torch.view_as_real(value)[_keep_pairs(other)])
        if func in _UNSQUEEZE:
            axis = other if other >= 0 else other - 1
            return torch.view_as_complex(torch.view_as_real(value).unsqueeze(axis))
        if func in _PRODUCTS and isinstance(other, int | float):
            return torch.view_as_complex(torch.view_as_real(value) * other)
        return func(*args)


def _keep_pairs(index: Any) -> Any:  # noqa: ANN401 - whatever indexes a tensor
    """The index with the pairs' axis after it, which only an ellipsis would reach."""
    parts = index if isinstance(index, tuple) else (index,)
    return (*parts, slice(None)) if any(part is Ellipsis for part in parts) else index
