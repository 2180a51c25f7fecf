"""From SOURCE on the command line, or a module in memory, to a ``LoadedModel``."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from moe_export.errors import UsageError
from moe_export.plan import BuildPlan
from moe_export.sources.hf_tasks import check_example
from moe_export.sources.hub import is_hub_id
from moe_export.sources.huggingface import (
    is_pretrained_model,
    load_huggingface,
    loaded_pretrained,
)
from moe_export.sources.inputs import (
    ExampleInputs,
    check_names,
    draw_inputs,
    name_inputs,
    num_embedded,
    read_inputs,
)
from moe_export.sources.model import LoadedModel, to_float32
from moe_export.sources.module_file import load_module_file

_MODULE_SUFFIXES = (".pt", ".pth", ".bin")
# A name on the hub may have a dot, and whatever follows it; these are files that are not there.
_FILE_SUFFIXES = (*_MODULE_SUFFIXES, ".pt2", ".safetensors", ".gguf", ".json", ".onnx", ".py")


def load_source(source: str, plan: BuildPlan) -> LoadedModel:
    """Load what ``source`` names.

    Args:
        source: A Hugging Face folder or hub id, ``module:callable``, or a ``.pt`` with a module.
        plan: Gives the example inputs, the seed and whether code may run.

    Raises:
        UsageError: the source does not exist or has another form.
        UnsupportedModelError: it cannot be loaded faithfully.
    """
    path = Path(source)
    if path.is_dir():
        return _with_inputs(load_huggingface(source, trust=plan.trust, seed=plan.seed), plan)
    if path.is_file():
        if path.suffix not in _MODULE_SUFFIXES:
            raise UsageError(
                f"{source}: expected a module saved as {' or '.join(_MODULE_SUFFIXES)}; "
                "for weights alone write a function that builds the model, and pass MODULE:CALLABLE"
            )
        return load_module(load_module_file(path, trust=plan.trust), None, plan, source=source)
    if re.fullmatch(r"[\w.]+:[\w.]+", source):
        return _load_callable(source, plan)
    if path.suffix in _FILE_SUFFIXES or not is_hub_id(source):
        raise UsageError(f"{source} does not exist")
    return _with_inputs(load_huggingface(source, trust=plan.trust, seed=plan.seed), plan)


def load_module(
    model: nn.Module, example: ExampleInputs | None, plan: BuildPlan, *, source: str
) -> LoadedModel:
    """Describe a module in memory; its example inputs come from ``example`` or the plan.

    Raises:
        UsageError: an argument of ``forward`` has no example.
    """
    if is_pretrained_model(model):
        loaded = loaded_pretrained(model, source=source, seed=plan.seed)
        if example is not None:
            loaded = replace(loaded, inputs=name_inputs(model, example))
        return _with_inputs(loaded, plan)
    source_dtypes = to_float32(model)
    loaded = LoadedModel(
        model=model.eval(),
        inputs=_as_float32(name_inputs(model, example)) if example is not None else {},
        source=source,
        source_dtypes=source_dtypes,
        description={"architecture": type(model).__name__},
    )
    loaded = _with_inputs(loaded, plan)
    check_names(loaded.model, loaded.inputs)
    return loaded


def _with_inputs(loaded: LoadedModel, plan: BuildPlan) -> LoadedModel:
    given = draw_inputs(loaded.model, plan.inputs, plan.seed)
    if plan.inputs_file is not None:
        given |= read_inputs(plan.inputs_file)
    if loaded.kind == "huggingface" and "input_ids" in given and "attention_mask" not in given:
        given["attention_mask"] = torch.ones_like(given["input_ids"])
    ids = [spec.name for spec in plan.inputs if spec.dtype.startswith("int")]
    loaded = replace(
        loaded,
        inputs={**loaded.inputs, **_as_float32(given)},
        integer_ranges={**dict.fromkeys(ids, num_embedded(loaded.model)), **loaded.integer_ranges},
    )
    if loaded.kind == "huggingface":
        check_example(loaded.model, loaded.inputs)
    return loaded


def _as_float32(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: t.float() if t.is_floating_point() else t for n, t in inputs.items()}


def _load_callable(source: str, plan: BuildPlan) -> LoadedModel:
    module_name, _, attribute = source.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: object = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{source}: {error}") from error
    if not callable(found):
        raise UsageError(f"{source} is a {type(found).__name__}, not something that can be called")
    try:
        result = found if isinstance(found, nn.Module) else found()
    except Exception as error:  # the user's own code may raise anything
        raise UsageError(f"{source}() raised {type(error).__name__}: {error}") from error
    example = None
    if isinstance(result, tuple) and len(result) == 2:
        result, example = result
    if not isinstance(result, nn.Module):
        raise UsageError(
            f"{source} must return a module, or a module and its example inputs; found "
            f"{type(result).__name__}"
        )
    return load_module(result, example, plan, source=source)
