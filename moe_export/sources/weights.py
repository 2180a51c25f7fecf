"""Weights alone: a state dict or safetensors, and the model that ``--factory`` builds for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.sources import file_backed
from moe_export.sources.checkpoint import (
    StoredTensor,
    find_weights,
    is_checkpoint_file,
    open_checkpoint,
)
from moe_export.sources.dequantize import FP8_DTYPES
from moe_export.sources.module_file import read_state_dict

# Torch's modules may keep more than tensors under names that end like this.
_EXTRA_STATE = "_extra_state"
_LISTED = 5


@dataclass(frozen=True)
class Weights:
    """Tensors by name, read when they are needed.

    Attributes:
        source: How the user named them.
        tensors: In memory, or in a file.
        remarks: What the user should know of how they were found.
    """

    source: str
    tensors: Mapping[str, Tensor | StoredTensor]
    remarks: tuple[str, ...] = ()


def open_weights(source: str, *, trust: bool) -> Weights:
    """Open a state dict (``.pt``), a safetensors file, an index of several, or a folder with one.

    Args:
        source: The path.
        trust: Unpickle what stands beside the tensors of a ``.pt``.

    Raises:
        UsageError: there are no weights, or they cannot be read.
        UnsupportedModelError: FP8 tensors, whose scales only a Hugging Face config explains.
    """
    path = Path(source)
    if path.is_dir():
        found = find_weights(path)
        if found is None:
            raise UsageError(f"{source} is a folder without .safetensors")
        path = found
    if not path.is_file():
        raise UsageError(f"{source} does not exist: --factory needs a file or folder of weights")
    if not is_checkpoint_file(path):
        tensors, remarks = read_state_dict(path, trust=trust)
        return Weights(source, tensors, remarks)
    stored = open_checkpoint(path)
    for name, tensor in stored.items():
        if tensor.dtype in FP8_DTYPES:
            raise UnsupportedModelError(
                f"{tensor.path}: {name} is {tensor.dtype}: quantized weights are read from a "
                "Hugging Face folder alone, whose config.json says how; dequantize them first"
            )
    return Weights(source, stored)


def load_weights(model: nn.Module, weights: Weights, factory: str) -> tuple[str, ...]:
    """Put weights into a model, strictly; tensors on the meta device are replaced.

    A tensor takes the type that the model has, as with ``load_state_dict``.

    Args:
        model: What ``factory`` built.
        weights: For every parameter and persistent buffer a tensor of its shape.
        factory: Named in errors.

    Returns:
        Remarks: prefixes that were taken off, tensors that were rounded.

    Raises:
        UsageError: lists the tensors that are missing, unexpected or of another shape, or that
            differ although the model has them as one.
    """
    own = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    prefix = _find_prefix(own, weights.tensors)
    given = {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.tensors.items()
        if not name.endswith(_EXTRA_STATE)
    }
    _check_fit(own, given, model, weights.source, factory)
    rounded = _place(model, own, given, weights.source)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise UsageError(
                f"{factory} left {name} on the meta device, and it is no part of the state dict: "
                "build it on the CPU"
            )
    remarks = [*weights.remarks]
    if prefix:
        remarks.append(f"the names in {weights.source} begin with {prefix}, which was taken off")
    if rounded:
        name = rounded[0]
        remarks.append(
            f"{len(rounded)} tensors of {weights.source} were rounded to the model's own type, as "
            f"load_state_dict does: {name} is {_dtype(weights.tensors[prefix + name])} there"
        )
    return tuple(remarks)


def _find_prefix(own: Mapping[str, Tensor], given: Mapping[str, object]) -> str:
    """What wrappers put before every name (``module.``, ``_orig_mod.``); empty if nothing."""
    names = [name for name in given if not name.endswith(_EXTRA_STATE)]
    if not names or set(names) & set(own):
        return ""
    parts = names[0].split(".")
    for count in range(1, len(parts)):
        prefix = ".".join(parts[:count]) + "."
        if all(name.startswith(prefix) for name in names) and all(
            name.removeprefix(prefix) in own for name in names
        ):
            return prefix
    return ""


def _check_fit(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor | StoredTensor],
    model: nn.Module,
    source: str,
    factory: str,
) -> None:
    loaded = {id(own[name]) for name in given if name in own}
    missing = [name for name, tensor in own.items() if id(tensor) not in loaded]
    unexpected = [name for name in given if name not in own]
    other = [
        f"{name} {_describe(tensor)} in the file, {_describe(own[name])} in the model"
        for name, tensor in given.items()
        if name in own and not _fits(tensor, own[name])
    ]
    problems = [
        f"{word} {len(names)}: {', '.join(names[:_LISTED])}{', ...' * (len(names) > _LISTED)}"
        for word, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", other))
        if names
    ]
    if problems:
        raise UsageError(
            f"{source} does not fit the {type(model).__name__} that {factory} builds:\n  "
            + "\n  ".join(problems)
        )


def _fits(tensor: Tensor | StoredTensor, own: Tensor) -> bool:
    dtype = _dtype(tensor)
    same_kind = (
        dtype.is_floating_point == own.dtype.is_floating_point
        and dtype.is_complex == own.dtype.is_complex
    )
    return tuple(tensor.shape) == tuple(own.shape) and same_kind


def _describe(tensor: Tensor | StoredTensor) -> str:
    return f"{str(_dtype(tensor)).removeprefix('torch.')}{list(tensor.shape)}"


def _dtype(tensor: Tensor | StoredTensor) -> torch.dtype:
    return tensor.dtype if isinstance(tensor, Tensor) else tensor.torch_dtype


def _place(
    model: nn.Module,
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor | StoredTensor],
    source: str,
) -> list[str]:
    """Put the values in place; return the names of those that the model's type rounds."""
    rounded: list[str] = []
    placed: dict[int, tuple[str, Tensor]] = {}  # a weight that is tied has several names
    for name, stored in given.items():
        tensor = own[name]
        value = stored if isinstance(stored, Tensor) else stored.read()
        if id(tensor) in placed:
            first, before = placed[id(tensor)]
            if not torch.equal(before, value.to(before.dtype)):
                raise UsageError(f"{source}: {first} and {name} differ; the model has them as one")
            continue
        if torch.promote_types(value.dtype, tensor.dtype) != tensor.dtype:
            rounded.append(name)
        placed[id(tensor)] = name, _filled(tensor, value)
    for module in model.modules():
        tensors: list[tuple[str, Tensor]] = [
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        ]
        for leaf, tensor in tensors:
            if tensor.is_meta and id(tensor) in placed:
                setattr(module, leaf, placed[id(tensor)][1])
    return rounded


def _filled(tensor: Tensor, value: Tensor) -> Tensor:
    """``tensor`` with the values, or what replaces it where it is on the meta device."""
    with torch.no_grad():
        if not tensor.is_meta:
            return tensor.copy_(value)
        new = file_backed.copy(value, tensor.dtype)
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(new, requires_grad=False) if is_parameter else new
