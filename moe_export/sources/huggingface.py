"""Hugging Face checkpoints: a folder, or a hub id where there is a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from moe_export.errors import EnvironmentLacksError, UnsupportedModelError, UsageError
from moe_export.sources.checkpoint_memory import parameters_in_files
from moe_export.sources.model import LoadedModel, to_float32

# Sizes that no other axis of a model has, so that a constant baked from them shows.
EXAMPLE_BATCH, EXAMPLE_LENGTH = 2, 11


def load_huggingface(source: str, *, trust: bool, seed: int) -> LoadedModel:
    """Load a causal language model with example ``input_ids`` and ``attention_mask``.

    Args:
        source: Folder or hub id.
        trust: Run modeling code that the checkpoint brings.
        seed: Seeds the example.

    Raises:
        EnvironmentLacksError: transformers is not installed.
        UsageError: weights are missing from the checkpoint.
        UnsupportedModelError: transformers cannot load the checkpoint as a causal model.
    """
    try:
        import transformers
    except ImportError as error:
        raise EnvironmentLacksError(
            "a Hugging Face model needs transformers: pip install 'moe-export[hf]'"
        ) from error
    try:
        with _quiet(transformers), parameters_in_files():
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                source,
                dtype="auto",
                trust_remote_code=trust,
                local_files_only=Path(source).is_dir(),
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:400]
        raise UnsupportedModelError(
            f"transformers cannot load {source} as a causal language model: {reason}"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise UsageError(
            f"{source} lacks {len(missing)} weights of {type(model).__name__}, which would be "
            f"random: {', '.join(missing[:5])}"
        )
    loaded = loaded_causal_model(model, source=source, seed=seed)
    if extra := sorted(info["unexpected_keys"]):
        note = f"{source} has {len(extra)} weights that the model does not use: {extra[0]}"
        return replace(loaded, remarks=(note,))
    return loaded


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


def loaded_causal_model(model: nn.Module, *, source: str, seed: int) -> LoadedModel:
    """Describe a transformers causal model that is already in memory."""
    config: Any = model.config
    vocabulary = config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(seed)
    shape = (EXAMPLE_BATCH, EXAMPLE_LENGTH)
    inputs = {
        "input_ids": torch.randint(vocabulary, shape, generator=generator),
        "attention_mask": torch.ones(shape, dtype=torch.int64),
    }
    source_dtypes = to_float32(model)
    return LoadedModel(
        model=model.eval(),
        inputs=inputs,
        source=source,
        kind="huggingface",
        constants={"use_cache": False},
        integer_ranges={"input_ids": vocabulary},
        source_dtypes=source_dtypes,
        description={"architecture": type(model).__name__, "model_type": config.model_type},
    )
