"""How checkpoints store expert weights, and the way from there to the contract's layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

_Tensor = TypeVar("_Tensor", bound=Any)


@dataclass(frozen=True)
class SourceLayout:
    """How a checkpoint stores expert weights; undone once, when the weights are saved.

    Attributes:
        transposed: Weights are ``[E, K, N]`` instead of the contract's ``[E, N, K]``.
        interleaved: Gate and up rows alternate instead of following each other.
    """

    transposed: bool = False
    interleaved: bool = False

    def changes(self, name: str) -> bool:
        """Whether the input called ``name`` is stored otherwise than the contract says."""
        return (self.transposed and _is_weight(name)) or (self.interleaved and _is_up(name))

    def row_major_shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape in the contract's layout of a tensor stored with ``shape``."""
        if self.transposed and _is_weight(name):
            return (*shape[:-2], shape[-1], shape[-2])
        return tuple(shape)

    def transpose_to_row_major(self, name: str, tensor: _Tensor) -> _Tensor:
        """View an input called ``name`` as ``[E, N, K]``; rows that alternate stay as they are."""
        if not (self.transposed and _is_weight(name)):
            return tensor
        swapped: _Tensor = tensor.swapaxes(-1, -2)
        return swapped

    def to_row_major(self, name: str, tensor: _Tensor) -> _Tensor:
        """View or copy a NumPy array or torch tensor, an input called ``name``, row-major."""
        tensor = self.transpose_to_row_major(name, tensor)
        if self.interleaved and _is_up(name):
            pairs = tensor.reshape(tensor.shape[0], -1, 2, *tensor.shape[2:])
            tensor = pairs.swapaxes(1, 2).reshape(tensor.shape)
        return tensor


def _is_weight(name: str) -> bool:
    return name in ("up_weight", "down_weight")


def _is_up(name: str) -> bool:
    return name in ("up_weight", "up_bias")
