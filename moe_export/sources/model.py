"""The record of a loaded model and the way its inputs and outputs are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from moe_export.errors import UnsupportedModelError
from moe_export.sources import file_backed

LOW_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode and float32 that is called with keyword arguments.

    Attributes:
        model: The user's module.
        inputs: Example tensors by argument name.
        constants: Arguments passed besides, such as ``use_cache=False``.
        source: How the user named it.
        kind: Which exporter captures it.
        integer_ranges: For integer inputs, the number of values that are valid.
        source_dtypes: Parameters and buffers that came in half precision, by name.
        description: Facts for the manifest.
        remarks: What the user should know about the source.
        folder: Where it was loaded from, if that is a checkpoint's folder.
    """

    model: nn.Module
    inputs: Mapping[str, Tensor]
    source: str
    kind: str = "module"
    constants: Mapping[str, Any] = field(default_factory=dict)
    integer_ranges: Mapping[str, int] = field(default_factory=dict)
    source_dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    description: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    folder: Path | None = None

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Call the model in eager and name its outputs.

        Raises:
            UnsupportedModelError: the model does not run on ``inputs``.
        """
        try:
            with torch.no_grad():
                outputs = name_outputs(self.model(**inputs, **self.constants))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in inputs.items())
            raise UnsupportedModelError(
                f"the model does not run in eager PyTorch on {shapes}: {error}"
            ) from error
        if self.kind != "huggingface":
            return outputs
        # Some models return a cache whatever ``use_cache`` says; --with-past has it in full.
        return {name: t for name, t in outputs.items() if not name.startswith("past_key_values")}


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers, shared ones once."""
    own = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.itemsize for t in own.values())


def name_outputs(result: object) -> dict[str, Tensor]:
    """Flatten what ``forward`` returned into named tensors; ``None`` and constants are left out.

    A single tensor is called ``output``; elements of a tuple ``output_0``, ``output_1``; values of
    a dict, a dataclass or a transformers ``ModelOutput`` by their key. PyTorch learns to look into
    the dataclasses that it finds.
    """
    leaves, _ = pytree.tree_flatten_with_path(result)
    records = {
        type(leaf) for _, leaf in leaves if is_dataclass(leaf) and not isinstance(leaf, type)
    }
    if records:
        for kind in records:
            torch.export.register_dataclass(kind)
        return name_outputs(result)
    tensors = [(path, leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]
    return {_output_name(path): leaf for path, leaf in tensors}


def _output_name(path: tuple[Any, ...]) -> str:
    keys = [
        str(next(getattr(key, n) for n in ("key", "idx", "name") if hasattr(key, n)))
        for key in path
    ]
    if not keys:
        return "output"
    return ".".join(keys) if not keys[0].isdigit() else "_".join(["output", *keys])


def to_float32(model: nn.Module) -> dict[str, torch.dtype]:
    """Convert half-precision tensors of ``model`` in place; return what they were, by name."""
    named = [*model.named_parameters(), *model.named_buffers()]
    converted = {name: t.dtype for name, t in named if t.dtype in LOW_PRECISION}
    for name, tensor in named:
        if name in converted:
            tensor.data = file_backed.copy(tensor.data, torch.float32)
    return converted


def restore_dtypes(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Undo ``to_float32``: exact, since the values came from the narrower type."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in dtypes:
            tensor.data = tensor.data.to(dtypes[name])
