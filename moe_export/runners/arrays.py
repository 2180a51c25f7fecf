"""Named arrays in ``.npz`` files, without pickled objects."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import UsageError

Array = NDArray[Any]


def read_arrays(path: Path) -> dict[str, Array]:
    """Read an ``.npz`` of plain arrays.

    Raises:
        UsageError: it is missing, malformed, or holds pickled objects.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded as archive:
                return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: not a readable .npz of plain arrays ({error})") from error
    raise UsageError(f"{path} holds one unnamed array: save with numpy.savez(file, NAME=array)")


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an ``.npz``.

    Raises:
        UsageError: the file cannot be written.
    """
    named: dict[str, Any] = dict(arrays)
    try:
        with path.open("wb") as file:
            np.savez(file, **named)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error
