"""The model in half precision while it is traced for an engine.

A strongly typed network computes each operator in the type of its tensors: what eager computes in
float32 because its code says so, such as a router's softmax, stays float32.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from moe_export.errors import UsageError
from moe_export.plan import DType
from moe_export.recognize.block import MoeBlock
from moe_export.sources import file_backed
from moe_export.sources.model import LOW_PRECISION, LoadedModel

Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
TORCH_DTYPES: dict[DType, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def source_dtype(loaded: LoadedModel) -> DType:
    """The type that the model's author gave most of its parameters."""
    names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    declared = getattr(getattr(loaded.model, "config", None), "dtype", None)
    if loaded.kind == "huggingface" and declared in LOW_PRECISION:
        return names[declared]  # quantized weights are float32 by now
    counts = dict.fromkeys(TORCH_DTYPES.values(), 0)
    for name, parameter in loaded.model.named_parameters():
        dtype = loaded.source_dtypes.get(name, parameter.dtype)
        counts[dtype] = counts.get(dtype, 0) + parameter.numel()
    most = max(counts, key=lambda dtype: counts[dtype])
    return names.get(most, "fp32")


@contextmanager
def cast_model(
    loaded: LoadedModel, blocks: Sequence[MoeBlock], dtype: DType
) -> Iterator[LoadedModel]:
    """The model and its inputs in ``dtype`` inside the block; the model is restored after it.

    These stay float32: experts' stacked weights, which are stored as the plan says later on; a
    layer that is rebuilt from operators recorded in float32, but for its experts; what the model
    keeps in float32 itself.

    Args:
        loaded: The model in float32.
        blocks: Its layers, bound to their lowered forms.
        dtype: What is wanted.

    Raises:
        UsageError: a weight is beyond what the type holds.
    """
    if dtype == "fp32":
        yield loaded
        return
    wanted = TORCH_DTYPES[dtype]
    inputs = {n: t.to(wanted) if t.is_floating_point() else t for n, t in loaded.inputs.items()}
    with ExitStack() as undo:
        for name, tensor in _cast_tensors(loaded, blocks):
            undo.callback(setattr, tensor, "data", tensor.data)
            tensor.data = _rounded(name, tensor, wanted)
        for block in blocks:
            if not _is_hooked(block):
                _run_in_float32(block.module, wanted, undo)
        yield replace(loaded, inputs=inputs)


@contextmanager
def round_weights(
    loaded: LoadedModel, blocks: Sequence[MoeBlock], dtype: DType
) -> Iterator[LoadedModel]:
    """The model in float32 inside the block, its weights the numbers that ``cast_model`` makes.

    Args:
        loaded: The model in float32.
        blocks: Its layers, not bound.
        dtype: What ``cast_model`` rounds to.
    """
    with ExitStack() as undo:
        if dtype != "fp32":
            for name, tensor in _cast_tensors(loaded, blocks):
                undo.callback(setattr, tensor, "data", tensor.data)
                narrow = _rounded(name, tensor, TORCH_DTYPES[dtype])
                tensor.data = file_backed.copy(narrow, torch.float32)
        yield loaded


def _cast_tensors(
    loaded: LoadedModel, blocks: Sequence[MoeBlock]
) -> Iterator[tuple[str, nn.Parameter | Tensor]]:
    """What is in half precision where the model is."""
    kept = _kept_names(loaded) | _names_of_experts(loaded.model, blocks)
    for name, tensor in list(_castable(loaded)):
        if name not in kept:
            yield name, tensor


@contextmanager
def run_in(loaded: LoadedModel, dtype: DType) -> Iterator[Run]:
    """How to call the model in half precision inside the block, experts included.

    Args:
        loaded: The model in float32, its layers not bound.
        dtype: What its own loader would be told.
    """
    wanted = TORCH_DTYPES[dtype]
    with ExitStack() as undo:
        for name, tensor in _cast_tensors(loaded, ()):
            undo.callback(setattr, tensor, "data", tensor.data)
            tensor.data = _rounded(name, tensor, wanted)
        yield lambda inputs: loaded.run(
            {n: t.to(wanted) if t.is_floating_point() else t for n, t in inputs.items()}
        )


def _rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another type.

    Raises:
        UsageError: a weight is beyond what the type holds.
    """
    narrow = file_backed.copy(tensor.data, dtype)
    if isinstance(tensor, nn.Parameter) and not narrow.isfinite().all() and tensor.isfinite().all():
        raise UsageError(
            f"{name}: its largest weight, {tensor.abs().max():.3g}, is beyond {dtype}: take "
            "--dtype bf16"
        )
    return narrow


def keep_weights(model: ir.Model) -> None:
    """Let a traced graph hold the weights themselves: its tensors name parameters of the module.

    Parameters get their float32 values back, and tensors that name them would with them.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(raw := getattr(tensor, "raw", None), Tensor):
            value.const_value = type(tensor)(raw.detach(), name=tensor.name)  # type: ignore[call-arg, union-attr, misc]


def _is_hooked(block: MoeBlock) -> bool:
    return block.kind == "experts hook"


def _castable(loaded: LoadedModel) -> Iterator[tuple[str, Tensor]]:
    """Float32 parameters, and those buffers that a cast by the model's own loader reaches."""
    for name, parameter in loaded.model.named_parameters():
        if parameter.dtype == torch.float32:
            yield name, parameter
    for name, buffer in loaded.model.named_buffers():
        # transformers computes buffers such as rotary frequencies in float32 whatever the type is.
        reached = loaded.kind != "huggingface" or name in loaded.source_dtypes
        if buffer.dtype == torch.float32 and reached:
            yield name, buffer


def _kept_names(loaded: LoadedModel) -> set[str]:
    """Tensors that the model keeps in float32 where the rest is in half precision."""
    names = [name for name, _ in _castable(loaded)]
    if loaded.kind == "huggingface":
        patterns: set[str] = set()
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
            patterns |= set(getattr(loaded.model, attribute, None) or ())
        matches = [re.compile(rf"(?:^|\.){re.escape(p)}(?:\.|$)") for p in patterns]
        return {name for name in names if any(match.search(name) for match in matches)}
    if not loaded.source_dtypes:
        return set()
    return {name for name in names if name not in loaded.source_dtypes}


def _names_of_experts(model: nn.Module, blocks: Sequence[MoeBlock]) -> set[str]:
    """Tensors that stay float32 for the sake of layers."""
    own: set[int] = set()
    for block in blocks:
        module = block.module
        deep = not _is_hooked(block)
        tensors = (*module.parameters(recurse=deep), *module.buffers(recurse=deep))
        own |= {id(tensor) for tensor in tensors}
    named = (*model.named_parameters(), *model.named_buffers())
    return {name for name, tensor in named if id(tensor) in own}


def _run_in_float32(module: nn.Module, dtype: torch.dtype, undo: ExitStack) -> None:
    """Call a bound layer with float32 tensors, and give its results back in ``dtype``."""
    bound = module.forward

    @functools.wraps(bound)
    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever eager passes
        wide_args, wide_kwargs = pytree.tree_map(_to(torch.float32, dtype), (args, kwargs))
        result = bound(*wide_args, **wide_kwargs)
        return pytree.tree_map(_to(dtype, torch.float32), result)

    undo.callback(setattr, module, "forward", bound)
    module.forward = forward


def _to(dtype: torch.dtype, source: torch.dtype) -> Any:  # noqa: ANN401 - a function of a leaf
    """Casts a tensor of type ``source``; leaves everything else."""
    return lambda leaf: (
        leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.dtype == source else leaf
    )
