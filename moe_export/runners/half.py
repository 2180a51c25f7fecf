"""Half precision at a model's boundary, where NumPy has float16 and no bfloat16.

Inputs of either type take float32 too, rounded to the nearest; outputs in bfloat16 come as float32.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.runners.arrays import Array


def round_to_bfloat16(array: Array) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 of float32 numbers, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return np.where(np.isnan(array), bits >> 16 | 0x40, rounded).astype(np.uint16)


def widen_bfloat16(bits: Array) -> NDArray[np.float32]:
    """The float32 numbers of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def read_ort_value(value: Any) -> Array:  # noqa: ANN401 - onnxruntime has no types
    """A tensor of ONNX Runtime on the CPU; float32 where it is bfloat16."""
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    shape = tuple(value.shape())
    size = value.tensor_size_in_bytes()
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return widen_bfloat16(np.frombuffer(raw, np.uint16).reshape(shape))
