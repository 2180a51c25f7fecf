"""Choose the next token from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moe_export.errors import UsageError
from moe_export.generation.spec import SamplingDefaults
from moe_export.runners.arrays import Array


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; the steps are taken in the order of the attributes.

    Attributes:
        do_sample: Draw by probability; otherwise the best token is taken, and of the settings
            below only the penalty counts.
        repetition_penalty: Divides the positive and multiplies the negative logits of tokens that
            the row has already (Keskar et al. 2019); 1 for none.
        temperature: Divides the logits.
        top_k: Keep the best tokens only; 0 for all.
        top_p: Keep the fewest best tokens whose probabilities reach this sum (Holtzman et al.
            2019); 1 for all.
    """

    do_sample: bool = False
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, math.inf)
        _check("repetition_penalty", self.repetition_penalty, 0.0, math.inf)
        _check("top_p", self.top_p, 0.0, 1.0)
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise UsageError(f"top_k must be a whole number, 0 for all tokens; found {self.top_k}")


def _check(name: str, value: float, above: float, most: float) -> None:
    if not (above < value <= most and math.isfinite(value)):
        limit = "" if math.isinf(most) else f" and at most {most:g}"
        raise UsageError(f"{name} must be above {above:g}{limit}; found {value}")


def resolve_sampling(
    defaults: SamplingDefaults,
    *,
    do_sample: bool,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    repetition_penalty: float | None,
) -> Sampling:
    """What was asked for, else what the source's generation config says, else neutral."""
    return Sampling(
        do_sample=do_sample,
        repetition_penalty=_first(repetition_penalty, defaults.repetition_penalty, 1.0),
        temperature=_first(temperature, defaults.temperature, 1.0),
        top_k=int(_first(top_k, defaults.top_k, 0)),
        top_p=_first(top_p, defaults.top_p, 1.0),
    )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def choose_tokens(
    logits: Array, seen: Array, sampling: Sampling, random: np.random.Generator
) -> Array:
    """One token per row.

    Args:
        logits: ``[B, V]`` float32.
        seen: ``[B, V]`` bool, tokens that the row has already.
        sampling: How.
        random: Gives one number per row and call, if tokens are drawn.

    Returns:
        ``[B]`` int64.
    """
    if sampling.repetition_penalty != 1.0:
        penalty = np.float32(sampling.repetition_penalty)
        logits = np.where(seen, np.where(logits < 0, logits * penalty, logits / penalty), logits)
    if not sampling.do_sample:
        best: Array = logits.argmax(axis=1)
        return best
    probabilities = token_probabilities(logits, sampling)
    reached = probabilities.cumsum(axis=1)
    drawn = random.random(len(logits))[:, None] * reached[:, -1:]
    # The first token whose sum passes the number drawn; one without probability never does.
    chosen: Array = np.minimum((reached <= drawn).sum(axis=1), logits.shape[1] - 1)
    return chosen


def token_probabilities(logits: Array, sampling: Sampling) -> Array:
    """``[B, V]`` float64: the probabilities that tokens are drawn with, 0 for those left out."""
    scores = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < scores.shape[1]:
        least = np.partition(scores, -sampling.top_k, axis=1)[:, -sampling.top_k, None]
        scores = np.where(scores < least, -np.inf, scores)
    probabilities = _softmax(scores)
    if sampling.top_p < 1:
        order = np.argsort(-probabilities, axis=1, kind="stable")
        ordered = np.take_along_axis(probabilities, order, axis=1)
        # A token stays while those before it do not reach the sum: the best one always does.
        kept = ordered.cumsum(axis=1) - ordered < sampling.top_p
        left = np.zeros_like(probabilities)
        np.put_along_axis(left, order, np.where(kept, ordered, 0.0), axis=1)
        probabilities = left / left.sum(axis=1, keepdims=True)
    return probabilities


def _softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Array = raised / raised.sum(axis=1, keepdims=True)
    return result
