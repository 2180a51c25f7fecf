"""The numbers that a model's own code computes with, such as the scale of its attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


class _Numbers(TorchFunctionMode):
    """Collects numbers that functions of PyTorch are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[float] = set()

    def __torch_function__(  # type: ignore[no-untyped-def]
        self,
        func,  # noqa: ANN001 - a function of PyTorch
        types,  # noqa: ANN001
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        leaves = pytree.tree_leaves((args, kwargs or {}))
        self.found |= {leaf for leaf in leaves if isinstance(leaf, float)}
        self.found |= {
            float(leaf)
            for leaf in leaves
            if isinstance(leaf, Tensor) and leaf.numel() == 1 and leaf.dtype == torch.float32
        }
        if func is scaled_dot_product_attention:
            self.found.add(float(leaves[0].shape[-1]) ** -0.5)  # the scale where none is given
        return func(*args, **(kwargs or {}))


def numbers_in_code(run: Callable[[], object]) -> frozenset[float]:
    """Numbers that ``run`` calls functions of PyTorch with, Python's and tensors of one element.

    PyTorch computes with a Python number in float32, whatever the type of the tensor is.
    """
    with _Numbers() as numbers:
        run()
    return frozenset(numbers.found)
