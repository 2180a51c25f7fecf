"""Large tensors in files without a name, so that a build does not need its model's size in memory.

The kernel writes such memory to disk and drops it when it needs room, where memory of its own kind
could only be swapped. The files have no name: they are gone when the process is, however it ends.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor

from moe_export.errors import MoeExportError

_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# Smaller tensors stay in memory.
_LARGE = 1 << 22

_folder: ContextVar[Path | None] = ContextVar("_folder", default=None)


def stored_bytes(source: Path) -> int:
    """Size of the weight files that a source on disk holds; 0 for another kind of source."""
    files = [source] if source.is_file() else source.glob("*") if source.is_dir() else []
    kinds = [f for f in files if f.suffix in _WEIGHT_SUFFIXES]
    # A checkpoint may come in several formats, of which one is read.
    return max(sum(f.stat().st_size for f in kinds if f.suffix == k) for k in _WEIGHT_SUFFIXES)


@contextmanager
def weights_in_files(folder: Path) -> Iterator[None]:
    """Let large weights that are made inside the block lie in files in ``folder``.

    Args:
        folder: Where there is room; the nearest folder above that exists is taken.
    """
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    token = _folder.set(folder if os.access(folder, os.W_OK) else None)
    try:
        yield
    finally:
        _folder.reset(token)


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor without values: in a file if it is large and inside ``weights_in_files``.

    Raises:
        MoeExportError: the disk is full.
    """
    count, folder = math.prod(shape), _folder.get()
    size = count * dtype.itemsize
    if folder is None or size < _LARGE:
        return torch.empty(tuple(shape), dtype=dtype)
    try:
        with tempfile.NamedTemporaryFile(prefix=".moe-export.", dir=folder) as file:
            # Room is taken now: a disk that is full later would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
            mapped = torch.from_file(file.name, shared=True, size=count, dtype=dtype)
    except OSError as error:
        raise MoeExportError(
            f"{folder} has no room for a tensor of {size / 1e9:.1f} GB: {error}"
        ) from error
    return mapped.reshape(*shape)


@torch.no_grad()
def stack(tensors: Sequence[Tensor]) -> Tensor:
    """``torch.stack`` along a new first axis."""
    result = empty((len(tensors), *tensors[0].shape), tensors[0].dtype)
    for place, tensor in zip(result, tensors, strict=True):
        place.copy_(tensor)
    return result


@torch.no_grad()
def cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """``torch.cat``."""
    shape = list(tensors[0].shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    result = empty(shape, tensors[0].dtype)
    for place, tensor in zip(
        result.split([t.shape[dim] for t in tensors], dim), tensors, strict=True
    ):
        place.copy_(tensor)
    return result


@torch.no_grad()
def copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in another type."""
    return empty(tensor.shape, dtype).copy_(tensor)
