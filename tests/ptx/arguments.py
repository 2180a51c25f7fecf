"""A launch's arguments as the bytes of its parameters."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tests.ptx.records import Variable

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Struct:
    """A structure passed by value: ``Struct({0: array, 8: np.int32(4)}, size=16)``.

    Attributes:
        fields: Byte offset to what lies there: an array (its address), None, a NumPy scalar or
            bytes. All else is zero.
        size: Bytes.
    """

    fields: Mapping[int, Array | np.generic | bytes | None]
    size: int


@dataclass(frozen=True)
class TensorMap:
    """A box of a row-major array that copies take by tensor maps (``runtime/async_copy.h``).

    Attributes:
        array: The tensor, up to five dimensions, the innermost last.
        box: Sizes of a box, in the same order.
        swizzle_bytes: 0, 32, 64 or 128.
    """

    array: Array
    box: Sequence[int]
    swizzle_bytes: int = 128


Argument = Array | np.generic | int | float | bytes | Struct | TensorMap | None

_TENSOR_MAP_TAG = 0x70616D20726F736E


@dataclass
class Memory:
    """Arrays that arguments point to, each once, and where the addresses belong."""

    arrays: list[Array] = field(default_factory=list)
    _pointers: list[tuple[bytearray, int, int]] = field(default_factory=list)

    def point(self, argument: bytearray, at: int, array: Array) -> None:
        """Has the array's address written at byte ``at`` of an argument.

        Raises:
            ValueError: The array is not contiguous.
        """
        if not array.flags.c_contiguous:
            raise ValueError("kernels take contiguous arrays only")
        position = next((i for i, known in enumerate(self.arrays) if known is array), None)
        if position is None:
            position = len(self.arrays)
            self.arrays.append(array)
        self._pointers.append((argument, at, position))

    def pointers(self, arguments: list[bytearray]) -> Iterator[tuple[bytearray, int, int]]:
        """The argument, the byte in it, and which array's address belongs there."""
        known = {id(argument) for argument in arguments}
        return (pointer for pointer in self._pointers if id(pointer[0]) in known)


def argument_bytes(parameter: Variable, argument: Argument, memory: Memory) -> bytearray:
    """The bytes of one argument, addresses left out.

    Raises:
        ValueError: It does not fit the parameter.
    """
    data = bytearray(parameter.size)
    match argument:
        case None:
            pass
        case np.ndarray():
            memory.point(data, 0, argument)
        case Struct(fields, size):
            if size != parameter.size:
                raise ValueError(f"{size} bytes for a parameter of {parameter.size}")
            _fill(data, fields, memory)
        case TensorMap():
            _fill(data, _tensor_map_fields(argument), memory)
        case bool() | int() | float():
            data[:] = _number_bytes(parameter, argument)
        case _:
            given = argument if isinstance(argument, bytes) else argument.tobytes()
            if len(given) != parameter.size:
                raise ValueError(f"{len(given)} bytes for a parameter of {parameter.size}")
            data[:] = given
    return data


def _number_bytes(parameter: Variable, number: float) -> bytes:
    if isinstance(number, float):
        return struct.pack({4: "<f", 8: "<d"}[parameter.size], number)
    if parameter.type in ("f32", "f64"):
        raise ValueError(f"the integer {number} for a parameter of type {parameter.type}")
    return (number % (1 << 8 * parameter.size)).to_bytes(parameter.size, "little")


def _fill(
    data: bytearray, fields: Mapping[int, Array | np.generic | bytes | None], memory: Memory
) -> None:
    for at, value in fields.items():
        match value:
            case None:
                pass
            case np.ndarray():
                memory.point(data, at, value)
            case _:
                given = value if isinstance(value, bytes) else value.tobytes()
                if at + len(given) > len(data):
                    raise ValueError(f"{len(given)} bytes at {at} of {len(data)}")
                data[at : at + len(given)] = given


def _tensor_map_fields(map_: TensorMap) -> dict[int, Array | np.generic | bytes | None]:
    array, rank = map_.array, map_.array.ndim
    sizes = [*reversed(array.shape), *[1] * (5 - rank)]
    rows = [*reversed(array.strides[:-1]), *[0] * (5 - rank)]
    box = [*reversed(map_.box), *[1] * (5 - rank)]
    return {
        0: struct.pack("<q", _TENSOR_MAP_TAG),
        8: array,
        16: struct.pack(
            "<4q5i5H2BI", *rows, *sizes, *box, rank, array.itemsize, map_.swizzle_bytes
        ),
    }
