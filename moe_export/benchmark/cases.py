"""The kinds of run that are timed, each with several sets of inputs that take turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moe_export.benchmark.signature import count_tokens, input_shapes
from moe_export.errors import UsageError
from moe_export.generation.decoder import Decoder
from moe_export.generation.spec import ATTENTION_MASK, INPUT_IDS, POSITION_IDS, GenerationSpec
from moe_export.package.bundle import Bundle
from moe_export.runners.arrays import Array, read_arrays

# Sets of inputs by tokens: few tokens hit few experts, and always the same would stay in the cache.
_MOST_SETS, _FEWEST_SETS, _TOKENS_OF_ALL = 16, 2, 64


@dataclass(frozen=True)
class Case:
    """One kind of run.

    Attributes:
        name: For tables.
        tokens: Tokens that a run adds, all rows together.
        inputs: Sets of inputs by name, without the cache.
        cache: What all sets come behind, by the input's name; none for a graph without a cache.
    """

    name: str
    tokens: int
    inputs: tuple[Mapping[str, Array], ...]
    cache: Mapping[str, Array] = field(default_factory=dict)


def draw_cases(bundle: Bundle, token_counts: Sequence[int], seed: int) -> tuple[Case, ...]:
    """A run of every number of tokens; with a cache also one token behind the largest.

    Raises:
        UsageError: the bundle's signature cannot take such a number.
    """
    generator = np.random.default_rng(seed)
    spec = bundle.manifest.generation
    if spec is not None:
        return _generative_cases(bundle, spec, token_counts, generator)
    signature = bundle.manifest.inputs
    example = read_arrays(bundle.folder / "example" / "inputs.npz")
    return tuple(
        Case(
            f"{tokens} tokens" if tokens > 1 else "1 token",
            tokens,
            tuple(
                _draw(signature, input_shapes(signature, tokens, example), example, generator)
                for _ in range(num_sets(tokens))
            ),
        )
        for tokens in token_counts
    )


def given_case(bundle: Bundle, name: str, inputs: Mapping[str, Array]) -> Case:
    """Exactly these inputs; for a bundle with a cache, ``input_ids`` will do.

    Raises:
        UsageError: an input is missing or unknown.
    """
    names = [spec["name"] for spec in bundle.manifest.inputs]
    spec = bundle.manifest.generation
    if spec is None:
        _check_names(names, inputs)
        return Case(name, count_tokens(bundle.manifest.inputs, inputs), (dict(inputs),))
    if INPUT_IDS not in inputs:
        raise UsageError(f"{name} has no {INPUT_IDS}; it has {', '.join(inputs) or 'nothing'}")
    ids = np.asarray(inputs[INPUT_IDS])
    mask = np.asarray(inputs.get(ATTENTION_MASK, np.ones_like(ids)))
    made = {
        INPUT_IDS: ids,
        ATTENTION_MASK: mask,
        POSITION_IDS: np.maximum(mask.cumsum(axis=-1) - 1, 0)[..., -ids.shape[-1] :],
        **_empty_cache(spec, len(ids)),
    }
    whole = {n: a for n, a in made.items() if n in names} | dict(inputs)
    _check_names(names, whole)
    caches = {c.past for c in spec.caches}
    return Case(
        name,
        ids.size,
        ({n: a for n, a in whole.items() if n not in caches},),
        {n: whole[n] for n in caches},
    )


def num_sets(tokens: int) -> int:
    """How many sets of inputs take turns at a number of tokens."""
    return min(max(_TOKENS_OF_ALL // tokens, _FEWEST_SETS), _MOST_SETS)


def _check_names(names: Sequence[str], inputs: Mapping[str, Array]) -> None:
    if missing := [name for name in names if name not in inputs]:
        raise UsageError(f"the inputs lack {', '.join(missing)}; they have {', '.join(inputs)}")
    if unknown := [name for name in inputs if name not in names]:
        raise UsageError(f"no input {', '.join(unknown)}; the bundle takes {', '.join(names)}")


def _generative_cases(
    bundle: Bundle,
    spec: GenerationSpec,
    token_counts: Sequence[int],
    generator: np.random.Generator,
) -> tuple[Case, ...]:
    names = [signature["name"] for signature in bundle.manifest.inputs]
    empty = _empty_cache(spec, 1)
    cases = [
        Case(f"prefill {tokens}", tokens, _steps(spec, names, tokens, 0, generator), empty)
        for tokens in token_counts
    ]
    past = max(token_counts)
    decoder = Decoder(bundle.runner, spec, 1)
    ids = _draw_ids(spec, past, generator)
    decoder.step(ids, np.ones_like(ids))
    sets = _steps(spec, names, 1, past, generator)
    return (*cases, Case(f"decode 1 behind {past}", 1, sets, decoder.cache()))


def _steps(
    spec: GenerationSpec,
    names: Sequence[str],
    tokens: int,
    past: int,
    generator: np.random.Generator,
) -> tuple[Mapping[str, Array], ...]:
    """Sets of ``tokens`` new tokens behind ``past`` others, one row."""
    sets = []
    for _ in range(num_sets(tokens)):
        made = {
            INPUT_IDS: _draw_ids(spec, tokens, generator),
            ATTENTION_MASK: np.ones((1, past + tokens), np.int64),
            POSITION_IDS: np.arange(past, past + tokens, dtype=np.int64)[None],
        }
        sets.append({name: array for name, array in made.items() if name in names})
    return tuple(sets)


def _draw_ids(spec: GenerationSpec, tokens: int, generator: np.random.Generator) -> Array:
    ids: Array = generator.integers(spec.vocabulary_size, size=(1, tokens), dtype=np.int64)
    return ids


def _empty_cache(spec: GenerationSpec, batch: int) -> dict[str, Array]:
    return {c.past: np.zeros((batch, c.heads, 0, c.width), c.dtype) for c in spec.caches}


def _draw(
    signature: Sequence[Mapping[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    example: Mapping[str, Array],
    generator: np.random.Generator,
) -> dict[str, Array]:
    names = [spec["name"] for spec in signature]
    return {name: _draw_like(name, shapes[name], example[name], generator) for name in names}


def _draw_like(
    name: str, shape: tuple[int, ...], example: Array, generator: np.random.Generator
) -> Array:
    """Random values of the example's kind: its spread, or its range of ids; masks hide nothing."""
    if "mask" in name:
        return np.ones(shape, example.dtype)
    if np.issubdtype(example.dtype, np.floating):
        drawn = generator.standard_normal(shape)
        spread = float(example.std(dtype=np.float64)) or 1.0
        values: Array = (drawn * spread + example.mean(dtype=np.float64)).astype(example.dtype)
        return values
    if example.dtype == np.bool_:
        return generator.integers(2, size=shape).astype(np.bool_)
    if "position" in name:
        return np.arange(shape[-1], dtype=example.dtype) + np.zeros(shape, example.dtype)
    low, high = int(example.min()), int(example.max())
    ids: Array = generator.integers(low, high + 1, size=shape).astype(example.dtype)
    return ids
