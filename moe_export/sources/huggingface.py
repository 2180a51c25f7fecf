"""Hugging Face checkpoints: a folder, or a hub id where there is a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from safetensors import SafetensorError
from torch import nn

from moe_export.errors import (
    EnvironmentLacksError,
    MoeExportError,
    UnsupportedModelError,
    UsageError,
)
from moe_export.sources.checkpoint_folder import open_checkpoint_folder
from moe_export.sources.checkpoint_memory import parameters_in_files
from moe_export.sources.hf_tasks import example_of, find_task
from moe_export.sources.model import LoadedModel, to_float32
from moe_export.sources.quantized import refuse_quantized_model


def load_huggingface(source: str, *, trust: bool, seed: int) -> LoadedModel:
    """Load the model that a checkpoint's configuration names, with example inputs.

    Args:
        source: Folder, or hub id with or without ``@revision``.
        trust: Run modeling code that the checkpoint brings.
        seed: Seeds the example.

    Raises:
        EnvironmentLacksError: transformers is not installed, or the hub cannot be reached.
        UsageError: weights are missing from the checkpoint, or it contradicts itself.
        UnsupportedModelError: transformers cannot load the checkpoint, or its quantization is not
            read.
    """
    try:
        import transformers
    except ImportError as error:
        raise EnvironmentLacksError(
            "a Hugging Face model needs transformers: pip install 'moe-export[hf]'"
        ) from error
    checkpoint = open_checkpoint_folder(source, trust=trust)
    try:
        with _quiet(transformers), parameters_in_files():
            config = transformers.AutoConfig.from_pretrained(
                str(checkpoint.path), trust_remote_code=trust, local_files_only=True
            )
            task = find_task(config, source, trust=trust)
            model, info = checkpoint.load(task.loader, trust=trust)
    except MoeExportError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:400]
        raise UnsupportedModelError(f"transformers cannot load {source}: {reason}") from error
    if missing := sorted(info["missing_keys"]):
        raise UsageError(
            f"{source} lacks {len(missing)} weights of {type(model).__name__}, which would be "
            f"random: {', '.join(missing[:5])}"
        )
    loaded = loaded_pretrained(model, source=source, seed=seed)
    remarks = [*checkpoint.remarks, *filter(None, [task.remark])]
    if extra := sorted(info["unexpected_keys"]):
        remarks.append(f"{source} has {len(extra)} weights that the model does not use: {extra[0]}")
    return replace(loaded, remarks=(*loaded.remarks, *remarks), folder=checkpoint.path)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:  # noqa: ANN401 - a module without annotations
    """Without transformers' load report and progress bar: what they say is checked."""
    logging = transformers.utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def is_pretrained_model(model: nn.Module) -> bool:
    """Whether ``model`` is a transformers model, which its own exporter prepares and captures."""
    return any(base.__name__ == "PreTrainedModel" for base in type(model).__mro__)


def loaded_pretrained(model: nn.Module, *, source: str, seed: int) -> LoadedModel:
    """Describe a transformers model that is already in memory, with example inputs.

    The example is empty where the model takes something else than texts or images.

    Raises:
        UnsupportedModelError: the model is quantized in memory.
    """
    refuse_quantized_model(model)
    config: Any = model.config
    example = example_of(model, seed)
    source_dtypes = to_float32(model)
    return LoadedModel(
        model=model.eval(),
        inputs=example.inputs,
        source=source,
        kind="huggingface",
        constants=example.constants,
        integer_ranges=example.integer_ranges,
        source_dtypes=source_dtypes,
        description={"architecture": type(model).__name__, "model_type": config.model_type},
    )
