"""Stage 3: run the exporter that fits the model with its MoE layers lowered."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from moe_export.capture.axes import (
    dynamic_shapes,
    fixed_axes,
    name_axes,
    recorded_guards,
    widen_example,
)
from moe_export.capture.complex_numbers import ComplexAsPairs
from moe_export.capture.exact_constants import exact_constants
from moe_export.capture.huggingface import export_pretrained, export_with_past
from moe_export.capture.loops.replace import prove_loops, replaced_loops
from moe_export.capture.loops.translate import write_scans
from moe_export.capture.precision import cast_model, keep_weights
from moe_export.capture.quiet import quiet_exporters
from moe_export.capture.torch_module import export_module
from moe_export.errors import MoeExportError, UnsupportedModelError
from moe_export.plan import BuildPlan
from moe_export.progress import Progress
from moe_export.recognize.block import MoeBlock, bound
from moe_export.sources.model import LoadedModel
from moe_export.sources.past import GenerativeModel
from moe_export.tolerances import output_tolerance, relative_error


@dataclass(frozen=True)
class CapturedModel:
    """The traced model, weights still those of PyTorch.

    Attributes:
        model: The ONNX graph with one custom node per op and layer.
        blocks: The layers that were lowered, in the model's order.
    """

    model: ir.Model
    blocks: tuple[MoeBlock, ...]


def capture(
    loaded: LoadedModel, blocks: Sequence[MoeBlock], plan: BuildPlan, progress: Progress
) -> CapturedModel:
    """Trace the model to ONNX.

    Raises:
        UnsupportedModelError: tracing fails, an MoE layer did not call its lowered form, or a model
            with a cache fixes an axis.
        UsageError: a named axis does not exist.
    """
    names = loaded.axis_names() if isinstance(loaded, GenerativeModel) else None
    shapes = dynamic_shapes(loaded.inputs, plan, names)
    loaded, expected = _with_wide_example(loaded, shapes)
    with (
        recorded_guards(functools.partial(_refuse_loop, loaded)) as guards,
        bound(blocks) as calls,
        replaced_loops(loaded.model) as loops,
        quiet_exporters(),
    ):
        _check_bound_model(expected, loaded.run(loaded.inputs), len(blocks))
        calls.update(dict.fromkeys(calls, 0))
        with cast_model(loaded, blocks, plan.dtype or "fp32") as typed:
            model = _export(typed, shapes, plan, list(expected), progress)
            keep_weights(model)
    missed = [path for path, count in calls.items() if count == 0]
    if missed:
        raise UnsupportedModelError(
            f"{', '.join(missed)}: the model computes these experts without calling the module, so "
            "that they cannot be lowered"
        )
    _drop_caches(model, expected)
    write_scans(model)
    name_axes(model, loaded.inputs, names)
    for text in prove_loops(loops):
        progress.remark(text)
    for text in _fixed_axes(model, loaded, shapes, guards):
        if isinstance(loaded, GenerativeModel):
            raise UnsupportedModelError(
                f"--with-past: {text}; batch, new and past tokens must vary. Build without it"
            )
        progress.remark(text)
    return CapturedModel(model, tuple(blocks))


def _drop_caches(model: ir.Model, expected: Mapping[str, Tensor]) -> None:
    """Drop outputs that eager's do not include: a cache that a model returns unasked."""
    for output in [value for value in model.graph.outputs if value.name not in expected]:
        model.graph.outputs.remove(output)


def _with_wide_example(
    loaded: LoadedModel, shapes: Mapping[str, Mapping[int, Any]]
) -> tuple[LoadedModel, dict[str, Tensor]]:
    """The model with an example that has no dynamic axis of size 1, and eager's outputs on it.

    A model that wants such an axis to be 1 keeps its example.
    """
    wide = replace(loaded, inputs=widen_example(loaded.inputs, shapes))
    try:
        return wide, wide.run(wide.inputs)
    except UnsupportedModelError:
        return loaded, loaded.run(loaded.inputs)


def _check_bound_model(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], num_layers: int
) -> None:
    """Compare the model with and without its lowered layers, both in eager, before it is traced."""
    for name, tensor in expected.items():
        error = relative_error(found[name].numpy(), tensor.numpy())
        if not error <= output_tolerance(num_layers):
            raise UnsupportedModelError(
                f"with its MoE layers lowered, still in eager PyTorch, the model's {name} differs "
                f"by {error:.1e} (allowed {output_tolerance(num_layers):.1e}): a layer is used in "
                "a way that its own comparison did not show"
            )


def _export(
    loaded: LoadedModel,
    shapes: Mapping[str, Mapping[int, Any]],
    plan: BuildPlan,
    outputs: Sequence[str],
    progress: Progress,
) -> ir.Model:
    try:
        with ComplexAsPairs(), exact_constants():
            if isinstance(loaded, GenerativeModel):
                return export_with_past(loaded, shapes, plan.target, progress.remark)
            if loaded.kind == "huggingface":
                return export_pretrained(loaded, shapes, plan.target, progress.remark)
            return export_module(loaded, shapes, outputs)
    except MoeExportError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        # torch.export and torch.onnx.export raise many kinds; the innermost says what happened.
        raise UnsupportedModelError(
            f"the model cannot be traced{_where(loaded.model, error)}: {_reason(error)}"
        ) from error


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {' '.join(text[:6])}" if text else type(error).__name__


def _where(model: torch.nn.Module, error: BaseException) -> str:
    """The innermost module of the model whose ``forward`` the error passed through."""
    paths = {module: path for path, module in model.named_modules()}
    found = ""
    while True:
        trace = error.__traceback__
        while trace is not None:
            module = trace.tb_frame.f_locals.get("self")
            if isinstance(module, torch.nn.Module) and paths.get(module):
                found = f" in {paths[module]} ({type(module).__name__})"
            trace = trace.tb_next
        if error.__cause__ is None or found:
            return found
        error = error.__cause__


def _refuse_loop(loaded: LoadedModel, guard: str) -> None:
    """Refuse a text model that loops over its tokens: tracing unrolls as many turns as it took.

    The graph would be right for the example's length, or up to a multiple of it, and wrong beyond.
    The trace ends here, since unrolling may take hours.

    Raises:
        UnsupportedModelError: names the loop.
    """
    if loaded.kind != "huggingface":
        return  # a plain module may mean a fixed size; it is remarked upon
    if ": for " in guard and " in range(" in guard:
        raise UnsupportedModelError(
            f"the model loops over its input ({guard.rstrip(':')}): such a loop is unrolled while "
            "it is traced, so that the graph would be wrong for inputs that need more turns"
        )


def _fixed_axes(
    model: ir.Model,
    loaded: LoadedModel,
    shapes: Mapping[str, Mapping[int, Any]],
    guards: Sequence[str],
) -> Iterator[str]:
    """What there is to say of axes that were meant to vary and came out with one size."""
    for name, axis in fixed_axes(model, loaded.inputs, shapes):
        size = loaded.inputs[name].shape[axis]
        cause = next((g for g in guards if f", {size})" in g), "its code depends on the size")
        yield f"{name} axis {axis} is fixed at {size} by the model: {cause}"
