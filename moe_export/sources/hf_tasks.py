"""What a Hugging Face model is for: the class that loads it, and what that is called with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moe_export.errors import UnsupportedModelError, UsageError

# Sizes that no other axis of a model has, so that a constant baked from them shows.
EXAMPLE_BATCH, EXAMPLE_LENGTH, EXAMPLE_DECODER_LENGTH = 5, 11, 7

# What a text model of several modalities is called with.
_TEXT_INPUTS = {"input_ids", "attention_mask", "position_ids"}

# transformers' choices of a class by the configuration's type, the likeliest first.
_AUTO_CLASSES = {
    "AutoModelForCausalLM": "a causal language model",
    "AutoModelForSeq2SeqLM": "an encoder and decoder",
    "AutoModelForMaskedLM": "a masked language model",
    "AutoModelForSequenceClassification": "a classifier of sequences",
    "AutoModelForTokenClassification": "a classifier of tokens",
    "AutoModelForQuestionAnswering": "a model that marks answers",
    "AutoModelForImageClassification": "a classifier of images",
    "AutoModel": "a model without a head",
}


@dataclass(frozen=True)
class Task:
    """How a checkpoint is loaded.

    Attributes:
        loader: A class of transformers with ``from_pretrained``.
        remark: What the user should know of the choice; empty where the checkpoint made it.
    """

    loader: Any
    remark: str = ""


@dataclass(frozen=True)
class Example:
    """What a model is called with.

    Attributes:
        inputs: Tensors by argument name; empty where they cannot be known.
        constants: Arguments besides.
        integer_ranges: For ids, how many values are valid.
    """

    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    integer_ranges: Mapping[str, int] = field(default_factory=dict)


def find_task(config: Any, source: str, *, trust: bool) -> Task:  # noqa: ANN401 - a configuration
    """The class that a checkpoint names, or the likeliest one for its configuration.

    Args:
        config: The checkpoint's configuration, as transformers read it.
        source: How the user named the checkpoint.
        trust: Code that the checkpoint brings may run.

    Raises:
        UnsupportedModelError: there is no such class; names the architectures.
    """
    import transformers

    named = list(config.architectures or [])
    own_code = getattr(config, "auto_map", None) or {}
    if trust and own_code:
        for auto in _AUTO_CLASSES:
            if auto in own_code:
                return Task(
                    getattr(transformers, auto), f"loaded by the checkpoint's code as {auto}"
                )
    for name in named:
        found = getattr(transformers, name, None)
        if isinstance(found, type) and hasattr(found, "from_pretrained"):
            return Task(found)
    if named:
        advice = (
            "it brings code of its own: pass --trust to run that"
            if own_code
            else "install the release that its config.json names as transformers_version, or write "
            "a function that returns the model, and pass it as MODULE:CALLABLE"
        )
        raise UnsupportedModelError(
            f"{source} is {' or '.join(named)} (model_type {config.model_type}), which "
            f"transformers {transformers.__version__} does not have; {advice}"
        )
    return _guess_task(config, source)


def _guess_task(config: Any, source: str) -> Task:  # noqa: ANN401 - a configuration
    import transformers

    order = list(_AUTO_CLASSES)
    if getattr(config, "is_encoder_decoder", False):
        order.sort(key=lambda name: name != "AutoModelForSeq2SeqLM")
    for name in order:
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping:
            what = _AUTO_CLASSES[name]
            return Task(auto, f"config.json names no architecture: loaded as {what} ({name})")
    raise UnsupportedModelError(
        f"{source} names no architecture, and transformers has no model of model_type "
        f"{config.model_type} for {', '.join(_AUTO_CLASSES)}: add architectures to config.json, or "
        "write a function that returns the model, and pass it as MODULE:CALLABLE"
    )


def example_of(model: nn.Module, seed: int) -> Example:
    """Example inputs of a transformers model in memory, by what its ``forward`` takes.

    Texts are ``[batch, length]`` ids with a mask, twice where there is a decoder of its own; images
    are ``[batch, channels, height, width]`` of the configuration's size.
    """
    main = str(getattr(model, "main_input_name", "input_ids"))
    parameters = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(seed)
    if main == "pixel_values":
        return _image_example(model, generator)
    if main != "input_ids" or main not in parameters:
        return Example()
    config: Any = model.config
    constants = {"use_cache": False} if {"use_cache", "past_key_values"} & set(parameters) else {}
    if "decoder_input_ids" in parameters:
        encoder = config.get_text_config(encoder=True)
        if not hasattr(encoder, "vocab_size"):  # one configuration of the texts for both
            encoder = config.get_text_config()
        inputs, ranges = _ids(encoder, "", EXAMPLE_LENGTH, generator)
        decoder = config.get_text_config(decoder=True)
        more, more_ranges = _ids(decoder, "decoder_", EXAMPLE_DECODER_LENGTH, generator)
        inputs, ranges = inputs | more, ranges | more_ranges
    else:
        inputs, ranges = _ids(config.get_text_config(), "", EXAMPLE_LENGTH, generator)
    known = {name: tensor for name, tensor in inputs.items() if name in parameters}
    return Example(known, constants, ranges)


def what_is_called(model: Any, inputs: Mapping[str, Tensor]) -> tuple[str, ...]:  # noqa: ANN401 - its attributes are not annotated
    """What part of a transformers model the inputs call; nothing for causal language models."""
    name = type(model).__name__
    if name.endswith("ForCausalLM"):
        return ()
    modalities = getattr(model, "input_modalities", "text")
    others = [m for m in modalities if m != "text"] if isinstance(modalities, tuple) else []
    if others and set(inputs) <= _TEXT_INPUTS:
        left_out = " and ".join(others)
        return (f"{name} is exported from texts alone: what it does with {left_out} is left out",)
    return (f"{name} is called with {', '.join(inputs)}",)


def check_example(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Check that there is something to call a transformers model with.

    Raises:
        UsageError: nothing is known; says what to pass.
    """
    if inputs:
        return
    main = str(getattr(model, "main_input_name", "input_ids"))
    takes = [name for name in inspect.signature(model.forward).parameters if name != "kwargs"]
    raise UsageError(
        f"{type(model).__name__} is called with {main}, of which no example can be made: pass "
        f"--input {main}=SIZES[:DTYPE] or --inputs FILE.npz; its forward takes {', '.join(takes)}"
    )


def _ids(
    config: Any,  # noqa: ANN401 - a configuration of transformers
    prefix: str,
    length: int,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Random ids and an open mask, and how many ids there are."""
    vocabulary = int(config.vocab_size)
    shape = (EXAMPLE_BATCH, length)
    inputs = {
        f"{prefix}input_ids": torch.randint(vocabulary, shape, generator=generator),
        f"{prefix}attention_mask": torch.ones(shape, dtype=torch.int64),
    }
    return inputs, {f"{prefix}input_ids": vocabulary}


def _image_example(model: Any, generator: torch.Generator) -> Example:  # noqa: ANN401 - its attributes are not annotated
    config = getattr(model.config, "vision_config", model.config)
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    if size is None:
        return Example()
    height, width = (size, size) if isinstance(size, int) else size
    shape = (EXAMPLE_BATCH, channels, height, width)
    inputs = {"pixel_values": torch.randn(shape, generator=generator)}
    return Example(inputs)
