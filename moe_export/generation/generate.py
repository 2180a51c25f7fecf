"""What ``Bundle.generate`` takes, put together."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_export.errors import UsageError
from moe_export.generation.decoder import Decoder
from moe_export.generation.prompts import Prompts, fill_id
from moe_export.generation.sampling import resolve_sampling
from moe_export.generation.spec import GenerationSpec
from moe_export.generation.stream import StopRule, stream_tokens
from moe_export.runners.arrays import Array
from moe_export.runners.onnxruntime import OnnxRuntimeRunner


class LongTextWarning(UserWarning):
    """More tokens are asked for than the model was configured for."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Keyword arguments of ``Bundle.generate`` and ``Bundle.stream``.

    Where a number is None, the source's generation config decides if it has it.

    Attributes:
        max_new_tokens: At most this many tokens per row.
        do_sample: Draw tokens by probability; otherwise the best one is taken.
        temperature: Divides the logits.
        top_k: Keep this many of the best tokens; 0 for all.
        top_p: Keep the best tokens whose probabilities reach this sum.
        repetition_penalty: Above 1 against tokens that the row has already, padding aside; counts
            without sampling too.
        eos_token_id: One or several ids that end a row; an empty sequence for none.
        seed: Of the draws; None for another one each time.
    """

    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_id: int | Sequence[int] | None = None
    seed: int | None = None

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> GenerateOptions:
        """From keyword arguments.

        Raises:
            UsageError: one is unknown.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        if unknown := sorted(set(options) - set(known)):
            raise UsageError(f"generate has no {', '.join(unknown)}; it takes {', '.join(known)}")
        return cls(**options)


def start_stream(
    runner: OnnxRuntimeRunner,
    spec: GenerationSpec,
    prompts: Prompts,
    options: GenerateOptions,
    *,
    batch_coupled: bool,
) -> Iterator[Array]:
    """Check the options, and give the tokens as they come.

    Args:
        runner: The session.
        spec: What its graph takes.
        prompts: The rows.
        options: How to generate.
        batch_coupled: Whether tokens of one run compete: a prompt is then run whole, as in eager.

    Raises:
        UsageError: an option is out of range.
    """
    sampling = resolve_sampling(
        spec.sampling,
        do_sample=options.do_sample,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
    )
    ends = _eos_ids(options, spec)
    stop = StopRule(options.max_new_tokens, ends, fill_id(spec, ends))
    batch, length = prompts.ids.shape
    if spec.max_positions is not None and length + stop.max_new_tokens > spec.max_positions:
        warnings.warn(
            f"{length} tokens and {stop.max_new_tokens} new ones are more than the "
            f"{spec.max_positions} positions that the model was configured for",
            LongTextWarning,
            stacklevel=4,
        )
    return stream_tokens(
        Decoder(runner, spec, batch),
        prompts,
        sampling,
        stop,
        random=np.random.default_rng(options.seed),
        in_parts=not batch_coupled,
    )


def _eos_ids(options: GenerateOptions, spec: GenerationSpec) -> tuple[int, ...]:
    given = options.eos_token_id
    if given is None:
        return spec.eos_token_ids
    ids = tuple(given) if isinstance(given, Sequence) else (given,)
    if not all(isinstance(token, (int, np.integer)) for token in ids):
        raise UsageError(f"eos_token_id must be an id or several; found {given!r}")
    return ids
