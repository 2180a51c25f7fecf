"""A ``.pt2`` file: a program that ``torch.export`` made, with its modules put together again."""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.sources.model import LOW_PRECISION
from moe_export.sources.program_sizes import read_sizes_where_used

_AS_EAGER = "export the eager module instead (MODULE:CALLABLE, or torch.save(model, ...))"


def load_program_file(path: Path, *, trust: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    """Load an ``ExportedProgram`` as modules, called with the names of the original's arguments.

    ``torch.export`` keeps for every operator which module ran it; from that come the modules again,
    with their paths, parameters and operators. What it does not keep is their Python: sizes that
    were fixed while exporting stay fixed.

    Args:
        path: What ``torch.export.save`` wrote.
        trust: The file may run code: torch evaluates expressions and unpickles tensors in it.

    Returns:
        The model, and the example inputs by name, as far as the file holds them.

    Raises:
        UsageError: loading was not allowed, or the file is no such program.
        UnsupportedModelError: a compiled program, one in half precision, or one that takes
            something else than tensors.
    """
    _check_archive(path)
    if not trust:
        raise UsageError(
            f"{path}: loading a .pt2 may run code (torch evaluates expressions in it and unpickles "
            "tensors): pass --trust if you know where the file comes from"
        )
    try:
        program = torch.export.load(path)
        read_sizes_where_used(program)
        model: nn.Module = torch.export.unflatten(program)
    except Exception as error:  # whatever torch's reader meets in a file of another version
        reason = str(error).strip().split("\n")[0][:300]
        raise UsageError(
            f"{path} is no program that this version of torch reads ({torch.__version__}): "
            f"{type(error).__name__}: {reason}"
        ) from error
    _refuse_half_precision(path, model)
    call = _read_call(path, program)
    # inspect.signature, and with it torch.export, goes by what is named here.
    model.forward = call.bind(model.forward)
    return model, call.name_example(program)


def _refuse_half_precision(path: Path, model: nn.Module) -> None:
    """A program has its types written into its operators, so that it is not run in float32."""
    for name, tensor in model.state_dict().items():
        if tensor.dtype in LOW_PRECISION:
            raise UnsupportedModelError(
                f"{path}: {name} is {str(tensor.dtype).removeprefix('torch.')}, and the program's "
                "operators are made for it: export model.float(), or pass the eager module"
            )


def is_program_file(path: Path) -> bool:
    """Whether ``path`` is named like an exported program."""
    return path.suffix == ".pt2"


@dataclass(frozen=True)
class _Call:
    """How a program is called: tensors by name, and what it was exported with besides.

    Attributes:
        names: All arguments in order.
        num_positional: How many of them come before those that are passed by keyword.
        constants: Values of arguments that are no tensors; the program is right for these alone.
        fixed: Sizes of axes that were fixed while exporting, by name and axis.
    """

    names: tuple[str, ...]
    num_positional: int
    constants: Mapping[str, object]
    fixed: Mapping[tuple[str, int], int]

    def bind(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """``forward`` with the tensors as arguments of their own names."""
        signature = inspect.Signature(
            [
                inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
                for name in self.names
                if name not in self.constants
            ]
        )

        def call(*arguments: Tensor, **keywords: Tensor) -> object:
            given: dict[str, Any] = {
                **self.constants,
                **signature.bind(*arguments, **keywords).arguments,
            }
            for (name, axis), size in self.fixed.items():  # tracing sees here that they are
                if given[name].shape[axis] != size:
                    raise ValueError(f"{name} axis {axis} was fixed at {size} by torch.export")
            values = [given[name] for name in self.names]
            count = self.num_positional
            return forward(
                *values[:count], **dict(zip(self.names[count:], values[count:], strict=True))
            )

        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    def name_example(self, program: ExportedProgram) -> dict[str, Tensor]:
        """The inputs that the program was exported with, where the file holds them."""
        if program.example_inputs is None:
            return {}
        arguments, keywords = program.example_inputs
        values = zip(self.names, [*arguments, *keywords.values()], strict=True)
        return {name: value for name, value in values if isinstance(value, Tensor)}


def _read_call(path: Path, program: ExportedProgram) -> _Call:
    positional, keyword = program.call_spec.in_spec.children()
    for spec in (*positional.children(), *keyword.children()):
        if not spec.is_leaf():
            raise UnsupportedModelError(
                f"{path} takes {spec.type.__name__} arguments; expected tensors alone: {_AS_EAGER}"
            )
    specs = [s for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    names = [spec.arg.name for spec in specs]
    names[positional.num_children :] = keyword.context
    constants = {
        name: spec.arg.value
        for name, spec in zip(names, specs, strict=True)
        if isinstance(spec.arg, ConstantArgument)
    }
    inputs = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    fixed = {
        (name, axis): size
        for name, spec in zip(names, specs, strict=True)
        if name not in constants
        for axis, size in enumerate(inputs[spec.arg.name].shape)
        if isinstance(size, int)
    }
    return _Call(tuple(names), positional.num_children, constants, fixed)


def _check_archive(path: Path) -> None:
    """Refuse what holds no exported program, before anything of it is deserialized."""
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path} is not a file that torch.export.save wrote")
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    programs = [name for name in names if name.startswith("models/")]
    if not programs and any(name.startswith("data/aotinductor/") for name in names):
        raise UnsupportedModelError(
            f"{path} holds machine code that AOTInductor compiled, no program: {_AS_EAGER}"
        )
    if programs != ["models/model.json"]:
        found = ", ".join(programs) or "none"
        raise UsageError(
            f"{path}: expected one program, models/model.json, as torch.export.save writes it; "
            f"found {found}"
        )
