"""Tensors ``[E, ...]`` that are computed one expert at a time, when they are written or read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


class ExpertTensor(ir.LazyTensor):
    """A tensor whose experts are computed when they are needed, and not kept.

    Args:
        read: From an expert's index to its part, ``shape[1:]``.
        dtype: Type of the elements.
        shape: ``[E, ...]``.
        name: Name of the tensor.
    """

    def __init__(
        self,
        read: Callable[[int], Array],
        dtype: ir.DataType,
        shape: tuple[int, ...],
        name: str | None,
    ) -> None:
        super().__init__(self._stack, dtype=dtype, shape=ir.Shape(shape), name=name)
        self._read, self._num_experts = read, shape[0]

    def expert(self, index: int) -> Array:
        """One expert's part."""
        return np.ascontiguousarray(self._read(index))

    def _stack(self) -> ir.TensorProtocol:
        """All experts at once, which may be larger than the memory."""
        return ir.tensor(np.stack([self.expert(e) for e in range(self._num_experts)]))

    def tofile(self, file: BinaryIO) -> None:
        """Write one expert after the other."""
        for e in range(self._num_experts):
            file.write(self.expert(e).view(np.uint8).data)


def read_expert(tensor: ir.TensorProtocol, index: int) -> Array:
    """One expert of a tensor ``[E, ...]`` of any kind."""
    if isinstance(tensor, ExpertTensor):
        return tensor.expert(index)
    part: Array = tensor.numpy()[index]
    return part
