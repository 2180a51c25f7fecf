"""Weights in safetensors files: what a file, an index of shards or a folder holds, read lazily."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe_export.errors import UsageError

WEIGHTS_FILE = "model.safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
INDEX_FILE = f"model{INDEX_SUFFIX}"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file; nothing but the file's header has been read.

    Attributes:
        name: Its name in the checkpoint.
        path: The file that holds it.
        dtype: As safetensors spells it, such as ``BF16`` or ``F8_E4M3``.
        shape: Its sizes.
        file: The open file.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    file: Any

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type that ``read`` gives."""
        part: Tensor = self.file.get_slice(self.name)[:0] if self.shape else self.read()
        return part.dtype

    def read(self) -> Tensor:
        """The values, mapped from the file.

        Raises:
            UsageError: the file does not hold what its header says.
        """
        try:
            tensor: Tensor = self.file.get_tensor(self.name)
        except SafetensorError as error:
            raise UsageError(f"{self.path}: cannot read {self.name}: {error}") from error
        return tensor

    def __getitem__(self, key: object) -> Tensor:
        """``tensor[...]``, which is how transformers reads a tensor when it needs it."""
        return self.read()[key]  # type: ignore[index]


def is_checkpoint_file(path: Path) -> bool:
    """Whether ``path`` is named like a safetensors file or an index of several."""
    return path.suffix == ".safetensors" or path.name.endswith(INDEX_SUFFIX)


def find_weights(folder: Path) -> Path | None:
    """The safetensors file or index in a folder; None where there is none.

    Raises:
        UsageError: there are several and none has the usual name.
    """
    usual = [folder / INDEX_FILE, folder / WEIGHTS_FILE]
    if found := [path for path in usual if path.is_file()]:
        return found[0]
    files = [*folder.glob(f"*{INDEX_SUFFIX}")] or [*folder.glob("*.safetensors")]
    if len(files) > 1:
        names = ", ".join(sorted(path.name for path in files)[:5])
        raise UsageError(
            f"{folder} holds {len(files)} safetensors files without {INDEX_FILE}, which "
            f"says what belongs together: {names}. Name one of them"
        )
    return files[0] if files else None


def open_checkpoint(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of a safetensors file, or of all files that an index names.

    Args:
        path: ``*.safetensors`` or ``*.safetensors.index.json``.

    Raises:
        UsageError: a file is missing or malformed, or lacks a tensor that the index promises.
    """
    if path.name.endswith(INDEX_SUFFIX):
        return _open_shards(path)
    return _open_file(path)


def _open_file(path: Path) -> dict[str, StoredTensor]:
    try:
        file: Any = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} is not a whole safetensors file: {error}") from error
    return {
        name: StoredTensor(name, path, s.get_dtype(), tuple(s.get_shape()), file)
        for name, s in slices.items()
    }


def _open_shards(index: Path) -> dict[str, StoredTensor]:
    shards = read_index(index)
    files = sorted(set(shards.values()))
    for file in files:
        if not (index.parent / file).is_file():
            raise UsageError(f"{index} names {file}, which is not there: is the download complete?")
    opened = {file: _open_file(index.parent / file) for file in files}
    for name, file in shards.items():
        if name not in opened[file]:
            raise UsageError(f"{index} says that {name} is in {file}, which does not hold it")
    return {name: opened[file][name] for name, file in shards.items()}


def read_index(index: Path) -> Mapping[str, str]:
    """Names of tensors to the files beside the index that hold them.

    Raises:
        UsageError: the index is malformed, or names a file elsewhere.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{index} is no readable JSON: {error}") from error
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise UsageError(f"{index} has no weight_map from tensor names to files")
    for file in shards.values():
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise UsageError(f"{index} names {file!r}, which is no file beside it")
    return shards
