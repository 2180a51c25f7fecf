"""From SOURCE on the command line, or a module in memory, to a ``LoadedModel``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from moe_export.errors import UsageError
from moe_export.plan import BuildPlan
from moe_export.sources.callables import call_named, is_callable_name
from moe_export.sources.checkpoint import is_checkpoint_file
from moe_export.sources.hf_tasks import check_example, what_is_called
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
from moe_export.sources.past import with_past
from moe_export.sources.program_file import is_program_file, load_program_file
from moe_export.sources.quantized import refuse_gguf
from moe_export.sources.weights import load_weights, open_weights

_MODULE_SUFFIXES = (".pt", ".pth", ".bin")
# A name on the hub may have a dot, and whatever follows it; these are files that are not there.
_FILE_SUFFIXES = (*_MODULE_SUFFIXES, ".pt2", ".safetensors", ".gguf", ".json", ".onnx", ".py")


def load_source(source: str, plan: BuildPlan) -> LoadedModel:
    """Load what ``source`` names.

    Args:
        source: A Hugging Face folder or hub id, ``module:callable``, a ``.pt`` with a module, or
            weights where the plan has a factory.
        plan: Gives the example inputs, the seed and whether code may run.

    Raises:
        UsageError: the source does not exist or has another form.
        UnsupportedModelError: it cannot be loaded faithfully.
    """
    path = Path(source)
    if plan.factory is not None:
        return _load_weights(source, plan.factory, plan)
    if path.is_dir():
        return _with_inputs(load_huggingface(source, trust=plan.trust, seed=plan.seed), plan)
    if path.is_file():
        return _load_file(path, plan, source)
    if is_callable_name(source):
        return _load_callable(source, plan)
    if path.suffix in _FILE_SUFFIXES or not is_hub_id(source):
        raise UsageError(f"{source} does not exist")
    return _with_inputs(load_huggingface(source, trust=plan.trust, seed=plan.seed), plan)


def _load_file(path: Path, plan: BuildPlan, source: str) -> LoadedModel:
    if path.suffix in _MODULE_SUFFIXES:
        return load_module(load_module_file(path, trust=plan.trust), None, plan, source=source)
    if is_program_file(path):
        model, example = load_program_file(path, trust=plan.trust)
        return load_module(model, example, plan, source=source)
    if is_checkpoint_file(path):
        raise UsageError(
            f"{source} holds weights alone: pass --factory MODULE:CALLABLE, a function that builds "
            "the model they belong to, or the Hugging Face folder they are in"
        )
    refuse_gguf(path, source)
    suffixes = ", ".join((*_MODULE_SUFFIXES, ".pt2"))
    raise UsageError(f"{source}: expected a file that ends in {suffixes} or .safetensors")


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
        remarks = what_is_called(loaded.model, loaded.inputs)
        loaded = replace(loaded, remarks=(*remarks, *loaded.remarks))
    return with_past(loaded, plan) if plan.with_past else loaded


def _as_float32(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: t.float() if t.is_floating_point() else t for n, t in inputs.items()}


def _load_callable(source: str, plan: BuildPlan) -> LoadedModel:
    model, example = call_named(source)
    return load_module(model, example, plan, source=source)


def _load_weights(source: str, factory: str, plan: BuildPlan) -> LoadedModel:
    if not is_callable_name(factory):
        raise UsageError(f"--factory {factory}: expected MODULE:CALLABLE")
    weights = open_weights(source, trust=plan.trust)
    model, example = call_named(factory)
    remarks = load_weights(model, weights, factory)
    loaded = load_module(model, example, plan, source=source)
    return replace(loaded, remarks=(*remarks, *loaded.remarks))
