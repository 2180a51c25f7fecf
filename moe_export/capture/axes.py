"""Which axes of the inputs vary: the defaults, what the user asked for, what the model fixed."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from moe_export.errors import UsageError
from moe_export.plan import AxisSpec, BuildPlan

_ROLES = ("batch", "sequence")


def default_axes(name: str, tensor: Tensor) -> list[tuple[str, int]]:
    """Axes that are dynamic unless told otherwise.

    Axes 0 and 1 of inputs of rank 3 or more and of rank-2 integers, else axis 0.
    """
    ids = tensor.dim() == 2 and not tensor.is_floating_point()
    count = 2 if tensor.dim() >= 3 or ids else min(tensor.dim(), 1)
    return [(name, axis) for axis in range(count)]


# Names of the axes that vary, by input, where they are known.
AxisNames = Mapping[str, Mapping[int, str]]


def dynamic_shapes(
    inputs: Mapping[str, Tensor], plan: BuildPlan, names: AxisNames | None = None
) -> dict[str, dict[int, Any]]:
    """``torch.export``'s dynamic shapes for the inputs.

    Args:
        inputs: The example.
        plan: What the user asked for.
        names: Axes that are known to vary; the defaults without it.

    Raises:
        UsageError: an axis is named that no input has, or is both dynamic and static.
    """
    asked = {(spec.name, spec.axis): spec for spec in plan.dynamic}
    fixed = {(spec.name, spec.axis) for spec in plan.static}
    for name, axis in (*asked, *fixed):
        if name not in inputs or axis >= inputs[name].dim():
            raise UsageError(f"{name}.{axis}: the inputs are {_shapes(inputs)}")
    if both := fixed & set(asked):
        raise UsageError(f"{'.'.join(map(str, sorted(both)[0]))} cannot be both dynamic and static")
    shapes: dict[str, dict[int, Any]] = {name: {} for name in inputs}
    for name, tensor in inputs.items():
        varying = default_axes(name, tensor) if names is None else [(name, a) for a in names[name]]
        for key in varying:
            if key not in fixed:
                shapes[name][key[1]] = torch.export.Dim.AUTO
    for (name, axis), spec in asked.items():
        shapes[name][axis] = _explicit(spec)
    return shapes


def widen_example(
    inputs: Mapping[str, Tensor], shapes: Mapping[str, Mapping[int, Any]]
) -> dict[str, Tensor]:
    """Repeat the example along dynamic axes of size 1.

    Tracing ties an axis to a size of 1 whatever the model does, and the user meant no such thing.
    """
    widened = dict(inputs)
    for name, axes in shapes.items():
        for axis in axes:
            if widened[name].shape[axis] == 1:
                # Axes get sizes of their own, so that tracing does not take them for one.
                widened[name] = torch.cat([widened[name]] * (2 + axis), dim=axis)
    return widened


def _explicit(spec: AxisSpec) -> Any:  # noqa: ANN401 - torch's Dim has no public type
    if spec.minimum is None:
        return torch.export.Dim.DYNAMIC
    # Not a named Dim, which any guard ends, also one that holds for every size.
    return torch.export.Dim.DYNAMIC(min=spec.minimum, max=spec.maximum)


def _shapes(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(t.shape)}" for name, t in inputs.items())


class _GuardHandler(logging.Handler):
    """Keeps the guards by which tracing tied a symbol to one size."""

    def __init__(self, on_guard: Callable[[str], None]) -> None:
        super().__init__(level=logging.INFO)
        self.guards: list[str] = []
        self._on_guard = on_guard

    def emit(self, record: logging.LogRecord) -> None:
        if match := re.match(r"eval (Eq\(.*?\)) \[guard added\]", record.getMessage()):
            self.guards.append(f"{match[1]}{_user_line()}")
            self._on_guard(self.guards[-1])


def _user_line() -> str:
    """The line of the model's code that is being traced."""
    own = (
        str(Path(torch.__file__).parent),
        str(Path(logging.__file__).parent),
        str(Path(__file__).parent),
    )
    frames = traceback.extract_stack()
    user = next((f for f in reversed(frames) if not f.filename.startswith(own)), None)
    return f" at {Path(user.filename).name}:{user.lineno}: {user.line}" if user else ""


@contextmanager
def recorded_guards(on_guard: Callable[[str], None] = lambda _: None) -> Iterator[list[str]]:
    """Collect the equality guards that ``torch.export`` adds inside the block.

    Args:
        on_guard: Receives each as it is added; what it raises ends the trace.
    """
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    handler, level, propagate = _GuardHandler(on_guard), logger.level, logger.propagate
    others, logger.handlers = logger.handlers, [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        yield handler.guards
    finally:
        logger.handlers, logger.propagate = others, propagate
        logger.setLevel(level)


def fixed_axes(
    model: ir.Model, inputs: Mapping[str, Tensor], shapes: Mapping[str, Mapping[int, Any]]
) -> list[tuple[str, int]]:
    """Axes meant to be dynamic that came out with one size."""
    values = {value.name: value for value in model.graph.inputs}
    return [
        (name, axis)
        for name in inputs
        for axis in shapes[name]
        if name in values
        and values[name].shape is not None
        and isinstance(values[name].shape[axis], int)  # type: ignore[index]
    ]


def name_axes(
    model: ir.Model, inputs: Mapping[str, Tensor], known: AxisNames | None = None
) -> None:
    """Give the graph's symbolic sizes readable names: batch, sequence, or input and axis.

    Axis 0 of the first input is the batch, axis 1 its sequence, and so is the same axis of another
    input with the same example size. A decoder of its own has a ``decoder_sequence``. Any other
    symbol is named after its first input and axis.
    Every mention of a symbol, also in expressions, is renamed. ``known`` names come first.
    """
    names: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, int) or str(size) in names or str(size).isdigit():
                continue
            example = inputs[str(value.name)].shape[axis]
            role = _ROLES[axis] if axis < len(_ROLES) else f"{value.name}_{axis}"
            if known is not None:
                names[str(size)] = known[str(value.name)].get(axis, role)
                continue
            if axis == 1 and str(value.name).startswith("decoder_"):
                role = "decoder_sequence"
            if sizes.setdefault(role, example) != example:
                role = f"{value.name}_{axis}"
            names[str(size)] = role
    for value in _values(model.graph):
        if value.shape is not None:
            value.shape = ir.Shape([_rename(size, names) for size in value.shape])


def _rename(size: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | ir.SymbolicDim:
    if isinstance(size, int) or size.value is None:
        return size
    if str(size.value).isdigit():  # torch.onnx keeps a size that was fixed late as a symbol
        return int(str(size.value))
    return ir.SymbolicDim(re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), str(size.value)))


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph.all_nodes():
        yield from node.outputs
