"""A ``.pt`` file that holds a whole pickled module."""

from __future__ import annotations

import pickle
import sys
import zipfile
from pathlib import Path

import torch
from torch import nn

from moe_export.errors import UnsupportedModelError, UsageError

# What unpicklers raise on bytes that torch.save did not write.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
)


def load_module_file(path: Path, *, trust: bool) -> nn.Module:
    """Unpickle a module; the file's folder is on the import path while that happens.

    Raises:
        UsageError: unpickling was not allowed, or the file holds something else.
        UnsupportedModelError: a TorchScript archive.
    """
    if _is_torchscript(path):
        raise UnsupportedModelError(
            f"{path} is a TorchScript archive: its routing was frozen when it was traced. "
            "Save the eager module with torch.save(model, ...) instead"
        )
    if not trust:
        raise UsageError(_why_trust(path))
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=False)
    except AttributeError as error:
        if "__main__" in str(error):
            raise UsageError(
                f"{path} was saved by a script that defined its classes itself ({error}): move "
                "them to a module that can be imported, save again, or pass MODULE:CALLABLE"
            ) from error
        raise UsageError(f"{path} does not fit the code it imports: {error}") from error
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{path} needs module {error.name}: put it beside the file or on PYTHONPATH"
        ) from error
    except _UNREADABLE as error:
        raise UsageError(f"{path} is not a file that torch.save wrote: {error}") from error
    if isinstance(loaded, nn.Module):
        return loaded
    raise UsageError(_not_a_module(path, type(loaded).__name__))


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _not_a_module(path: Path, found: str) -> str:
    return (
        f"{path} holds a {found}, not a module: for weights alone, write a function that builds "
        "the model and loads them, and pass it as MODULE:CALLABLE"
    )


def _why_trust(path: Path) -> str:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE:
        return (
            f"{path} may hold pickled Python objects, and unpickling runs code: pass --trust if "
            "you know where the file comes from"
        )
    return _not_a_module(path, type(found).__name__)
