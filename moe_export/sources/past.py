"""A causal model with its key/value cache among its inputs and outputs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.generation.spec import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    POSITION_IDS,
    CacheTensor,
    GenerationSpec,
    SamplingDefaults,
)
from moe_export.plan import BuildPlan
from moe_export.sources.model import LoadedModel

# Of the example's tokens, those that are in the cache already: 6 of the 11 that are drawn.
_PAST_SHARE = 0.55
# Settings of a generation config that change the tokens a model gives, and that are not done here.
_NOT_DONE = (
    "min_length", "min_new_tokens", "stop_strings", "min_p", "top_h", "typical_p",
    "epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size", "bad_words_ids", "guidance_scale",
    "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "watermarking_config",
)  # fmt: skip
_NEUTRAL: tuple[Any, ...] = (None, False, 0, 0.0, [], {})
_GENERATION_CONFIG = "generation_config.json"
_NEUTRAL_ONE = ("typical_p", "guidance_scale")


@dataclass(frozen=True)
class GenerativeModel(LoadedModel):
    """A causal model that is called with its cache as named tensors.

    Its inputs are ``input_ids`` and ``position_ids`` ``[batch, sequence]``, ``attention_mask``
    ``[batch, past_sequence + sequence]`` and the tensors of ``spec.caches``; its outputs are
    ``logits`` and the caches with the new tokens behind the old ones.

    Attributes:
        plain: The model without its cache: layers are run again and again to recognize them, and
            each run would leave its tokens in a cache.
        spec: How it generates.
    """

    plain: LoadedModel | None = None
    spec: GenerationSpec = field(default_factory=lambda: GenerationSpec((), 1))

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Call the model in eager on a cache that keeps all tokens, as the graph's does.

        Raises:
            UnsupportedModelError: the model does not run on ``inputs``.
        """
        others, cache = self.split(inputs)
        logits = EagerDecoder(self.model, cache).step(others)[LOGITS]
        tensors = [t for layer in cache.layers for t in (layer.keys, layer.values)]
        names = [c.present for c in self.spec.caches]
        return {LOGITS: logits, **dict(zip(names, tensors, strict=True))}

    def split(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        """The inputs apart from the cache, and a cache of transformers' that holds the others."""
        from transformers import DynamicCache

        cache, names = DynamicCache(), [c.past for c in self.spec.caches]
        others = {name: tensor for name, tensor in inputs.items() if name not in names}
        for layer, (keys, values) in enumerate(zip(names[::2], names[1::2], strict=True)):
            cache.update(inputs[keys], inputs[values], layer)
        return others, cache

    def start(self) -> EagerDecoder:
        """An empty cache of the kind that ``generate`` makes, and the model on it."""
        return EagerDecoder(self.model, empty_cache(self.model))

    def axis_names(self) -> dict[str, dict[int, str]]:
        """Names of the axes that vary, by input."""
        ids = {0: "batch", 1: "sequence"}
        axes = {
            INPUT_IDS: ids,
            POSITION_IDS: ids,
            ATTENTION_MASK: {0: "batch", 1: "total_sequence"},
        }
        past = {c.past: {0: "batch", 2: "past_sequence"} for c in self.spec.caches}
        return {name: {**axes, **past}[name] for name in self.inputs}


def empty_cache(model: Any) -> Any:  # noqa: ANN401 - transformers' Cache
    """The cache that ``generate`` makes for a model."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


class EagerDecoder:
    """Eager steps over one cache.

    Args:
        model: A causal model.
        cache: transformers' own; it grows with every step.
    """

    def __init__(self, model: nn.Module, cache: Any) -> None:  # noqa: ANN401 - as above
        self._model: Any = model
        self.cache = cache

    def step(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits ``[batch, sequence, vocabulary]`` of the next tokens; the cache keeps them.

        Raises:
            UnsupportedModelError: the model does not run on ``inputs``.
        """
        try:
            with torch.no_grad():
                result = self._model(**inputs, past_key_values=self.cache, use_cache=True)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in inputs.items())
            raise UnsupportedModelError(
                f"the model does not run in eager PyTorch on {shapes} with a cache: {error}"
            ) from error
        return {LOGITS: result.logits}


def with_past(loaded: LoadedModel, plan: BuildPlan) -> GenerativeModel:
    """``loaded`` with its cache among its inputs; the first part of its example is in the cache.

    Raises:
        UsageError: it is no transformers causal model, its example is too short to be split, or
            axes are asked for.
        UnsupportedModelError: it keeps something else than growing keys and values.
    """
    _check_kind(loaded)
    if plan.dynamic or plan.static:
        raise UsageError(
            "--with-past decides which axes vary (batch, new and past tokens): leave out --dynamic "
            "and --static"
        )
    ids = loaded.inputs[INPUT_IDS]
    mask = loaded.inputs.get(ATTENTION_MASK, torch.ones_like(ids))
    length, past = ids.shape[1], int(ids.shape[1] * _PAST_SHARE)
    if past < 2 or length - past < 2:
        raise UsageError(
            f"--with-past: input_ids of {length} tokens cannot be split; at least 4 are needed"
        )
    inputs = {INPUT_IDS: ids, ATTENTION_MASK: mask}
    if POSITION_IDS in inspect.signature(loaded.model.forward).parameters:
        inputs[POSITION_IDS] = (mask.cumsum(-1) - 1).clamp(min=0)
    first = {name: tensor[:, :past] for name, tensor in inputs.items()}
    decoder = EagerDecoder(loaded.model, empty_cache(loaded.model))
    _check_layers(loaded.model, decoder.cache)
    decoder.step(first)
    windows = [getattr(la, "sliding_window", None) for la in decoder.cache.layers]
    _check_grown(loaded.model, decoder.cache)
    folder = loaded.folder or _named_folder(loaded.model)
    asked = _generation_config(loaded.model, folder)
    spec = _make_spec(loaded.model, asked, decoder.cache, windows)
    own = {f.name: getattr(loaded, f.name) for f in dataclasses.fields(loaded)}
    own |= {"folder": folder}
    model = GenerativeModel(**{**own, "plain": loaded, "spec": spec, "constants": {}})
    empty = {c.past: torch.zeros(len(ids), c.heads, 0, c.width) for c in spec.caches}
    given = model.run({**first, **empty})
    inputs = {n: t if n == ATTENTION_MASK else t[:, past:] for n, t in inputs.items()}
    inputs |= {c.past: given[c.present] for c in spec.caches}
    remarks = (*loaded.remarks, *_remarks(asked))
    return dataclasses.replace(model, inputs=inputs, remarks=remarks)


def _check_kind(loaded: LoadedModel) -> None:
    name = type(loaded.model).__name__
    config: Any = getattr(loaded.model, "config", None)
    if loaded.kind != "huggingface" or config is None:
        raise UsageError(
            f"--with-past needs a Hugging Face causal language model; found {name}, whose cache is "
            "not known. Leave it out, or pass the cache as inputs of your own module"
        )
    model: Any = loaded.model
    known = {INPUT_IDS, ATTENTION_MASK}
    if getattr(config, "is_encoder_decoder", False) or known ^ {*loaded.inputs, ATTENTION_MASK}:
        raise UsageError(
            f"--with-past needs a decoder that takes input_ids and attention_mask; {name} takes "
            f"{', '.join(loaded.inputs)}. Build without --with-past"
        )
    if not model.can_generate():
        raise UsageError(
            f"--with-past needs a causal language model; {name} does not generate. Build without "
            "--with-past, or load it with its language model's head (architectures in config.json)"
        )
    if "past_key_values" not in inspect.signature(loaded.model.forward).parameters:
        raise UnsupportedModelError(
            f"--with-past: {name}.forward takes no past_key_values: it has no cache of keys and "
            "values. Build without --with-past"
        )


def _check_layers(model: nn.Module, cache: Any) -> None:  # noqa: ANN401 - transformers' Cache
    """Every layer's cache is one that grows token by token, behind a window or not."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    for index, layer in enumerate(cache.layers):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise UnsupportedModelError(
                f"--with-past: layer {index} of {type(model).__name__} keeps a "
                f"{type(layer).__name__}; only keys and values that grow token by token can be "
                "passed from step to step. Build without --with-past"
            )


def _check_grown(model: nn.Module, cache: Any) -> None:  # noqa: ANN401 - transformers' Cache
    for index, layer in enumerate(cache.layers):
        if layer.keys is None or layer.keys.dim() != 4 or layer.values.dim() != 4:
            raise UnsupportedModelError(
                f"--with-past: layer {index} of {type(model).__name__} keeps no keys and values "
                "[batch, heads, tokens, width]. Build without --with-past"
            )


def _make_spec(
    model: Any,  # noqa: ANN401 - a transformers model
    asked: Any,  # noqa: ANN401 - its GenerationConfig
    cache: Any,  # noqa: ANN401 - transformers' Cache
    windows: list[int | None],
) -> GenerationSpec:
    caches = [
        CacheTensor(
            past=f"past_key_values.{index}.{kind}",
            present=f"present.{index}.{kind}",
            heads=tensor.shape[1],
            width=tensor.shape[3],
            sliding_window=windows[index],
        )
        for index, layer in enumerate(cache.layers)
        for kind, tensor in (("key", layer.keys), ("value", layer.values))
    ]
    text = model.config.get_text_config()
    eos = asked.eos_token_id
    sampling = {f.name: getattr(asked, f.name, None) for f in dataclasses.fields(SamplingDefaults)}
    return GenerationSpec(
        caches=tuple(caches),
        vocabulary_size=int(text.vocab_size),
        eos_token_ids=tuple(_ids(eos if isinstance(eos, list) else [eos])),
        pad_token_id=next(iter(_ids([asked.pad_token_id])), None),
        bos_token_id=next(iter(_ids([asked.bos_token_id])), None),
        max_positions=getattr(text, "max_position_embeddings", None),
        sampling=SamplingDefaults(**sampling),
    )


def _named_folder(model: Any) -> Path | None:  # noqa: ANN401 - a transformers model
    """The folder that a model in memory was loaded from, if it was loaded from one."""
    name = getattr(model.config, "_name_or_path", None)
    return Path(str(name)) if name and Path(str(name)).is_dir() else None


def _generation_config(model: Any, folder: Path | None) -> Any:  # noqa: ANN401 - GenerationConfig
    """The checkpoint's own, which a model that was built from a state dict does not have."""
    from transformers import GenerationConfig

    own = model.generation_config
    if folder is None or not own._from_model_config or not (folder / _GENERATION_CONFIG).is_file():
        return own
    return GenerationConfig.from_pretrained(str(folder), local_files_only=True)


def _ids(values: list[Any]) -> list[int]:
    """Token ids; some configurations say -1 for none."""
    return [int(value) for value in values if value is not None and value >= 0]


def _remarks(asked: Any) -> list[str]:  # noqa: ANN401 - transformers' GenerationConfig
    """Settings of the generation config that the bundle's ``generate`` leaves out."""
    found = {name: getattr(asked, name, None) for name in _NOT_DONE}
    left = [
        f"{name}={value}"
        for name, value in found.items()
        if value not in _NEUTRAL and not (value == 1 and name in _NEUTRAL_ONE)
    ]
    if (asked.num_beams or 1) > 1:
        left.append(f"num_beams={asked.num_beams}")
    if not left:
        return []
    return [f"the generation config asks for {', '.join(left)}, which generate does not do"]
