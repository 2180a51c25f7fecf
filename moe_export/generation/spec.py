"""What a graph with a key/value cache takes and gives: the manifest's section ``generation``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

# Names of the graph's inputs beside the cache; a model that needs no positions has no such input.
INPUT_IDS, ATTENTION_MASK, POSITION_IDS, LOGITS = (
    "input_ids", "attention_mask", "position_ids", "logits",
)  # fmt: skip
_TOKENIZER = re.compile(r"tokenizer/[\w][\w.-]*")


@dataclass(frozen=True)
class CacheTensor:
    """One tensor that a step takes from the step before, and gives to the next.

    Attributes:
        past: Name of the graph's input, ``[batch, heads, past_sequence, width]``.
        present: Name of the output: ``past`` with the step's own tokens behind it.
        heads: Size of axis 1.
        width: Size of axis 3.
        sliding_window: How many of the last tokens its layer attends to; None for all. The tensor
            holds all of them either way, the graph masks those before the window.
        dtype: Of both.
    """

    past: str
    present: str
    heads: int
    width: int
    sliding_window: int | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class SamplingDefaults:
    """What the source's generation config says of sampling; None where it says nothing."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class GenerationSpec:
    """How a bundle generates.

    Attributes:
        caches: In the order of the model's layers, keys before values.
        vocabulary_size: Ids are below it.
        eos_token_ids: Any of these ends a row.
        pad_token_id: Fills a row behind its end.
        bos_token_id: Begins a text.
        max_positions: Positions that the model was configured for.
        sampling: Of the source's generation config.
        tokenizer: The bundle's ``tokenizer.json``, if it has one.
    """

    caches: tuple[CacheTensor, ...]
    vocabulary_size: int
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    max_positions: int | None = None
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    tokenizer: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(
        cls,
        values: Mapping[str, Any],
        inputs: Collection[str],
        outputs: Collection[str],
        files: Collection[str],
    ) -> GenerationSpec:
        """Read and check what ``to_json`` gave.

        Args:
            values: Any JSON object.
            inputs: Names of the graph's inputs.
            outputs: Names of the graph's outputs.
            files: Paths inside the bundle.

        Raises:
            TypeError: an entry is missing or of another type.
            ValueError: an entry is unknown or out of range, or names something that the graph or
                the bundle does not have.
        """
        _check_keys(cls, values)
        caches = tuple(_cache_tensor(entry) for entry in values["caches"])
        spec = cls(
            **{
                **values,
                "caches": caches,
                "eos_token_ids": tuple(values.get("eos_token_ids", ())),
                "sampling": _sampling(values.get("sampling", {})),
            }
        )
        _check_numbers(spec)
        _check_names(spec, inputs, outputs)
        if spec.tokenizer is not None and (
            not _TOKENIZER.fullmatch(str(spec.tokenizer)) or spec.tokenizer not in files
        ):
            raise ValueError(f"generation: the bundle lists no tokenizer {spec.tokenizer!r}")
        return spec


def _check_keys(kind: Any, values: object) -> None:  # noqa: ANN401 - a dataclass
    if not isinstance(values, Mapping):
        raise TypeError(f"generation: expected an object, found {type(values).__name__}")
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"generation: unknown entries {', '.join(unknown)}")


def _cache_tensor(values: Mapping[str, Any]) -> CacheTensor:
    _check_keys(CacheTensor, values)
    cache = CacheTensor(**values)
    if not (isinstance(cache.past, str) and isinstance(cache.present, str)):
        raise TypeError(f"generation: {cache.past!r} and {cache.present!r} must be names")
    _check_whole(f"{cache.past}: heads", cache.heads, 1)
    _check_whole(f"{cache.past}: width", cache.width, 1)
    if cache.sliding_window is not None:
        _check_whole(f"{cache.past}: sliding_window", cache.sliding_window, 1)
    if cache.dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"generation: {cache.past} cannot have type {cache.dtype!r}")
    return cache


def _sampling(values: Mapping[str, Any]) -> SamplingDefaults:
    _check_keys(SamplingDefaults, values)
    for name, value in values.items():
        kinds = (int,) if name == "top_k" else (int, float)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise ValueError(f"generation: {name} must be a number, found {value!r}")
    return SamplingDefaults(**values)


def _check_numbers(spec: GenerationSpec) -> None:
    _check_whole("vocabulary_size", spec.vocabulary_size, 1)
    if spec.max_positions is not None:
        _check_whole("max_positions", spec.max_positions, 1)
    ids = [*spec.eos_token_ids, spec.pad_token_id, spec.bos_token_id]
    for token in ids:
        if token is not None:
            _check_whole("a token id", token, 0)


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"generation: {name} must be a whole number >= {least}, found {value!r}")


def _check_names(spec: GenerationSpec, inputs: Collection[str], outputs: Collection[str]) -> None:
    pasts, presents = [c.past for c in spec.caches], [c.present for c in spec.caches]
    if not spec.caches or len({*pasts}) < len(pasts) or len({*presents}) < len(presents):
        raise ValueError("generation: caches must be there, each once")
    known = {INPUT_IDS, ATTENTION_MASK, POSITION_IDS, *pasts}
    if INPUT_IDS not in inputs or set(pasts) - set(inputs) or set(inputs) - known:
        raise ValueError(
            f"generation: the graph takes {', '.join(inputs)}; the section names "
            f"{', '.join(sorted(known))}"
        )
    if missing := {LOGITS, *presents} - set(outputs):
        raise ValueError(f"generation: the graph gives no {', '.join(sorted(missing))}")
