"""The GPU library's C functions (plugins/cuda/c_api.cpp) from Python."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, fields
from pathlib import Path

from moe_export.errors import MoeExportError
from moe_export.ops.record import OpAttributes
from moe_export.ops.spec import GroupedExperts

ELEMENT_TYPES = ("fp32", "fp16", "bf16")
_MOST_TILES = 8


class GpuLibraryError(MoeExportError):
    """A call into the GPU library failed."""


@dataclass(frozen=True)
class KernelResources:
    """What a kernel takes of a multiprocessor.

    Attributes:
        threads: Of a block.
        shared_bytes: Of a block.
        registers: Of a thread; 0 where the driver compiles the kernel.
        outputs: Rows of the weight that a block multiplies with.
    """

    threads: int
    shared_bytes: int
    registers: int
    outputs: int


class GpuLibrary:
    """The library; addresses are of device memory.

    Args:
        path: Of libmoe_export_cuda.so, or of one with the same functions.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def call(self, name: str, *arguments: object) -> None:
        """Call ``moe_export_NAME``.

        Args:
            name: Without its prefix.
            arguments: Attributes, names of element types, numbers and addresses (None for null), as
                the C function has them.

        Raises:
            GpuLibraryError: with the reason that the function gives.
        """
        function = getattr(self._library, f"moe_export_{name}")
        function.restype = ctypes.c_char_p
        reason = function(*map(_to_c, arguments))
        if reason is not None:
            raise GpuLibraryError(reason.decode())

    def number(self, name: str, *arguments: object) -> int:
        """The int64 that a function writes to its last argument."""
        result = ctypes.c_int64()
        self.call(name, *arguments, ctypes.byref(result))
        return result.value

    def expert_tiles(self, attributes: GroupedExperts, element_type: str) -> list[int]:
        """Rows of the tiles that a layer may choose from; empty if it is not computed."""
        rows = (ctypes.c_int64 * _MOST_TILES)()
        count = self.number("grouped_experts_tiles", attributes, element_type, rows)
        return list(rows[:count])

    def product_resources(
        self, attributes: GroupedExperts, element_type: str, tile_rows: int, capability: int
    ) -> KernelResources:
        """What the kernel of a layer's first product takes of a GPU."""
        found = (ctypes.c_int64 * len(fields(KernelResources)))()
        self.call("grouped_experts_kernel", attributes, element_type, tile_rows, capability, found)
        return KernelResources(*found)


def _to_c(argument: object) -> object:
    if isinstance(argument, OpAttributes):
        return _lines(argument).encode()
    if isinstance(argument, str):
        return ctypes.c_int32(ELEMENT_TYPES.index(argument))
    if isinstance(argument, int):  # a size, or an address
        return ctypes.c_int64(argument)
    return argument


def _lines(attributes: OpAttributes) -> str:
    """``name=value`` lines; a bool is 0 or 1."""
    values = {field.name: getattr(attributes, field.name) for field in fields(attributes)}
    return "".join(
        f"{name}={int(value) if isinstance(value, bool) else value}\n"
        for name, value in values.items()
    )
