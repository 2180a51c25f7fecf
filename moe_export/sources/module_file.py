"""A ``.pt`` file: a whole pickled module, or a state dict."""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn

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
    _refuse_torchscript(path)
    if not trust:
        raise UsageError(_why_trust(path))
    loaded = _unpickle(path)
    if isinstance(loaded, nn.Module):
        return loaded
    raise UsageError(_not_a_module(path, type(loaded).__name__))


def read_state_dict(path: Path, *, trust: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read the tensors of a state dict, which may stand in a training checkpoint.

    Args:
        path: What ``torch.save`` wrote.
        trust: Unpickle what is no tensor or plain container, too.

    Returns:
        Tensors by name, and a remark where they are one entry among others.

    Raises:
        UsageError: it holds something else, or objects whose unpickling was not allowed.
        UnsupportedModelError: a TorchScript archive.
    """
    _refuse_torchscript(path)
    if trust:
        loaded = _unpickle(path)
    else:
        try:
            loaded = _load(path, weights_only=True)
        except _UNREADABLE as error:
            raise UsageError(_untrusted(path)) from error
    if isinstance(loaded, nn.Module):
        raise UsageError(f"{path} holds a whole {type(loaded).__name__}: leave out --factory")
    return _find_state_dict(path, loaded)


def _find_state_dict(path: Path, loaded: object) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    if _is_state_dict(loaded):
        return _tensors(loaded), ()
    entries = loaded.items() if isinstance(loaded, Mapping) else ()
    found = {str(key): value for key, value in entries if _is_state_dict(value)}
    if len(found) == 1:
        ((key, value),) = found.items()
        return _tensors(value), (f"the weights are those under {key!r} in {path}",)
    if found:
        raise UsageError(
            f"{path} holds {len(found)} state dicts, {', '.join(sorted(found))}: save the one to "
            "export alone"
        )
    raise UsageError(
        f"{path} holds a {type(loaded).__name__}; expected a dict from names to tensors"
    )


def _is_state_dict(value: object) -> TypeGuard[Mapping[str, object]]:
    """Whether all are tensors by name, but for what torch calls extra state."""
    return (
        isinstance(value, Mapping)
        and any(isinstance(tensor, Tensor) for tensor in value.values())
        and all(
            isinstance(name, str) and (isinstance(tensor, Tensor) or name.endswith("_extra_state"))
            for name, tensor in value.items()
        )
    )


def _tensors(state: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _unpickle(path: Path) -> object:
    """Unpickle with the file's folder on the import path.

    Raises:
        UsageError: what is missing, or that it is no such file.
    """
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return _load(path, weights_only=False)
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


def _load(path: Path, *, weights_only: bool) -> object:
    zipped = zipfile.is_zipfile(path)  # what older versions of torch wrote cannot be mapped
    return torch.load(path, map_location="cpu", weights_only=weights_only, mmap=zipped)


def _refuse_torchscript(path: Path) -> None:
    if _is_torchscript(path):
        raise UnsupportedModelError(
            f"{path} is a TorchScript archive: its routing was frozen when it was traced. "
            "Save the eager module with torch.save(model, ...) instead"
        )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _not_a_module(path: Path, found: str) -> str:
    return (
        f"{path} holds a {found}, not a module: for weights alone pass --factory MODULE:CALLABLE, "
        "a function that builds the model they belong to"
    )


def _why_trust(path: Path) -> str:
    try:
        found = _load(path, weights_only=True)
    except _UNREADABLE:
        return _untrusted(path)
    return _not_a_module(path, type(found).__name__)


def _untrusted(path: Path) -> str:
    return (
        f"{path} may hold pickled Python objects, and unpickling runs code: pass --trust if "
        "you know where the file comes from"
    )
