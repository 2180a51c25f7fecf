"""Example inputs: drawn at random from a shape, read from a file, or named from a call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from moe_export.errors import UsageError
from moe_export.plan import InputSpec
from moe_export.runners.arrays import read_arrays

ExampleInputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def forward_parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    """Parameters of the model's ``forward`` by name."""
    return dict(inspect.signature(model.forward).parameters)


def name_inputs(model: nn.Module, example: ExampleInputs) -> dict[str, Tensor]:
    """Bind positional example inputs to the names of ``forward``'s arguments.

    Raises:
        UsageError: there are more tensors than arguments, or something is not a tensor.
    """
    if isinstance(example, Tensor):
        example = (example,)
    if not isinstance(example, (Mapping, Sequence)):
        raise UsageError(
            "example inputs must be a tensor, a sequence of tensors or tensors by name; found "
            f"{type(example).__name__}"
        )
    if not isinstance(example, Mapping):
        names = [n for n, p in forward_parameters(model).items() if p.kind is not p.VAR_KEYWORD]
        if len(example) > len(names):
            raise UsageError(
                f"{len(example)} example inputs for forward({', '.join(names)}) of "
                f"{type(model).__name__}"
            )
        example = dict(zip(names, example, strict=False))
    for name, value in example.items():
        if not isinstance(value, Tensor):
            raise UsageError(f"example input {name} must be a tensor; found {type(value).__name__}")
    return dict(example)


def draw_inputs(model: nn.Module, specs: Sequence[InputSpec], seed: int) -> dict[str, Tensor]:
    """Draw tensors for ``--input``: normal, or ids that every embedding of the model has."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    for spec in specs:
        dtype: torch.dtype = getattr(torch, spec.dtype)
        if dtype.is_floating_point:
            drawn[spec.name] = torch.randn(spec.shape, generator=generator).to(dtype)
        elif dtype is torch.bool or "mask" in spec.name:
            drawn[spec.name] = torch.ones(spec.shape, dtype=dtype)
        else:
            top = num_embedded(model)
            drawn[spec.name] = torch.randint(top, spec.shape, generator=generator, dtype=dtype)
    return drawn


def num_embedded(model: nn.Module) -> int:
    """Number of ids that every embedding of the model has; 2 where it has none."""
    return min(
        (m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=2
    )


def read_inputs(path: Path) -> dict[str, Tensor]:
    """Read ``--inputs FILE.npz``.

    Raises:
        UsageError: the file is missing or is no archive of plain arrays.
    """
    return {name: torch.from_numpy(array) for name, array in read_arrays(path).items()}


def check_names(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Check that ``forward`` takes the inputs by these names and needs no others.

    Raises:
        UsageError: lists forward's arguments and how to pass them.
    """
    parameters = forward_parameters(model)
    signature = f"forward({', '.join(parameters)})"
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [] if takes_any else [name for name in inputs if name not in parameters]
    if unknown:
        raise UsageError(f"{type(model).__name__}.{signature} has no argument {', '.join(unknown)}")
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and name not in inputs
    ]
    if missing:
        raise UsageError(
            f"{type(model).__name__}.{signature} needs an example of {', '.join(missing)}: pass "
            f"--input {missing[0]}=2,16,64 (sizes, with :int64 for ids) or --inputs FILE.npz"
        )
