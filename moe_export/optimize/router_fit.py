"""Find the ``TopKGating`` that does what a router does, from what it was seen to do."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from moe_export.errors import ContractError
from moe_export.ops.spec import (
    EpsilonMode,
    ExcludedScore,
    GroupScore,
    ScoreFunction,
    TopKGating,
    WeightFunction,
)
from moe_export.optimize.gating_batch import choose, scores, weigh
from moe_export.optimize.hypothesis_error import HypothesisError, judge, same_experts
from moe_export.optimize.observation import Observation
from moe_export.runners.arrays import Array
from moe_export.tolerances import ROUTER_TOLERANCE

# Rows that most wrong choices fail on.
_FEW = 16
_MIN_SCALE = 1e-20
# Identity first: where a softmax or a sigmoid serves the choice alone, it only adds ties.
_SCORES: tuple[ScoreFunction, ...] = ("identity", "softmax", "sigmoid", "sqrt_softplus")


@dataclass(frozen=True)
class RouterFit:
    """A hypothesis and how near it comes.

    Attributes:
        attributes: Of the op.
        bias: Name of the selection bias among the router's values.
        error: Against the router on every probe.
    """

    attributes: TopKGating
    bias: str | None
    error: HypothesisError

    @property
    def holds(self) -> bool:
        """Whether the router is explained."""
        return self.error.holds


@dataclass(frozen=True)
class Ingredients:
    """What a router has to make its rule of.

    Attributes:
        num_experts: E.
        top_k: K.
        biases: Vectors ``[E]`` that do not depend on the logits, by name.
        scalars: Its numbers.
        guards: Numbers that something is added to or bounded by, with the way.
        sizes: Sizes of its values' axes.
        selections: How many nodes it selects with.
        counts: How many its top-k nodes keep.
    """

    num_experts: int
    top_k: int
    biases: Mapping[str, Array]
    scalars: frozenset[float]
    guards: frozenset[tuple[float, EpsilonMode]]
    sizes: frozenset[int]
    selections: int
    counts: frozenset[int]


def fit_router(
    seen: Observation, parts: Ingredients, known: Sequence[TopKGating] = ()
) -> RouterFit | None:
    """Try every hypothesis that the router's ingredients allow.

    Args:
        seen: What the router did.
        parts: Its ingredients.
        known: Attributes found for other layers, which mostly hold here too.

    Returns:
        The nearest hypothesis, whether it holds or not; None where none chooses nearly alike.
    """
    if not seen.routes:
        return None
    for attributes in known:
        for bias in _possible_biases(attributes, parts):
            fit = _judge(seen, parts, attributes, bias)
            if fit.holds and fit.error.other_choices == 0:
                return fit
    found: RouterFit | None = None
    for choice, bias in _choices(seen, parts):
        for attributes in _weightings(choice, seen, parts):
            fit = _judge(seen, parts, attributes, bias)
            if found is None or fit.error < found.error:
                found = fit
            if found.error.is_rounding:
                return found
    return found


def _judge(
    seen: Observation, parts: Ingredients, attributes: TopKGating, bias: str | None
) -> RouterFit:
    vector = parts.biases[bias] if bias is not None else None
    return RouterFit(attributes, bias, judge(seen, attributes, vector))


def _possible_biases(attributes: TopKGating, parts: Ingredients) -> Sequence[str | None]:
    """Biases with which attributes of another layer are made of this router's ingredients."""
    guards = parts.guards or {(0.0, "add")}
    if attributes.renormalize and (attributes.epsilon, attributes.epsilon_mode) not in guards:
        return ()
    if attributes.top_k != parts.top_k or attributes.has_selection_bias != bool(parts.biases):
        return ()
    if not _is_possible(attributes, parts.num_experts):
        return ()
    return list(parts.biases) or [None]


def _choices(seen: Observation, parts: Ingredients) -> Iterator[tuple[TopKGating, str | None]]:
    """Hypotheses about which experts are chosen that most rows agree with.

    A stored bias comes first: one that is too small to show is still the router's.
    """
    rows = np.flatnonzero(seen.ordinary & ~seen.tied)
    few, many = seen.rows(rows[:_FEW]), seen.rows(rows)
    for score, bias in itertools.product(_SCORES, [*parts.biases, None]):
        plain = TopKGating(
            top_k=parts.top_k, score_function=score, has_selection_bias=bias is not None
        )
        vector = parts.biases[bias] if bias is not None else None
        for choice in itertools.chain([plain], _groupings(plain, parts)):
            if _agreement(few, choice, vector) > 0.8 and _agreement(many, choice, vector) > 0.9:
                yield choice, bias


def _agreement(seen: Observation, choice: TopKGating, bias: Array | None) -> float:
    found = choose(scores(choice.score_function, seen.logits), choice, bias)
    return float(same_experts(found, seen.ids).mean()) if len(found) else 0.0


def _groupings(plain: TopKGating, parts: Ingredients) -> Iterator[TopKGating]:
    """Group rules, with as many kept groups as some top-k node of the router keeps."""
    if parts.selections < 2:
        return
    divisors = [g for g in sorted(parts.sizes) if 1 < g < parts.num_experts]
    divisors = [g for g in divisors if parts.num_experts % g == 0]
    kept = sorted(parts.counts | {1})
    rules = itertools.product(divisors, kept, get_args(GroupScore), get_args(ExcludedScore))
    for groups, top_groups, group_score, excluded in rules:
        if top_groups >= groups:
            continue
        hypothesis = dataclasses.replace(
            plain,
            num_groups=groups,
            top_groups=top_groups,
            group_score=group_score,
            excluded_score=excluded,
        )
        if _is_possible(hypothesis, parts.num_experts):
            yield hypothesis


def _is_possible(attributes: TopKGating, num_experts: int) -> bool:
    try:
        attributes.check_shapes({"logits": (1, num_experts), "selection_bias": (num_experts,)})
    except ContractError:
        return False
    return True


def _weightings(choice: TopKGating, seen: Observation, parts: Ingredients) -> Iterator[TopKGating]:
    """Hypotheses about the weights.

    An epsilon that the router has comes first: one that is too small to show is still its own.
    """
    functions: tuple[WeightFunction, ...] = get_args(WeightFunction)
    guards = [(True, number, mode) for number, mode in sorted(parts.guards) if 0 < number < 0.5]
    guards += [(False, 0.0, "add"), (True, 0.0, "add")]
    valid = (seen.ids >= 0) & (seen.ids < parts.num_experts)
    few = seen.rows(np.flatnonzero(seen.ordinary & valid.all(axis=1)))
    for function, (renormalize, epsilon, mode) in itertools.product(functions, guards):
        attributes = dataclasses.replace(
            choice,
            weight_function=function,
            renormalize=renormalize,
            epsilon=epsilon,
            epsilon_mode=mode,
        )
        scale = _scale(attributes, few, parts.scalars)
        if scale is not None:
            yield dataclasses.replace(attributes, scale=scale)


def _scale(attributes: TopKGating, seen: Observation, scalars: frozenset[float]) -> float | None:
    """The factor between the router's weights and the hypothesis': if possible a stored number.

    Returns:
        None where there is none that float32 could hold.
    """
    score = scores(attributes.score_function, seen.logits)
    unscaled = weigh(seen.logits, score, seen.ids, attributes)
    with np.errstate(all="ignore"):
        ratios = seen.weights.astype(np.float64) / unscaled
    ratios = ratios[np.isfinite(ratios) & (np.abs(unscaled) > 1e-6)]
    ratio = float(np.median(ratios)) if ratios.size else 0.0
    if not _MIN_SCALE < abs(ratio) < 1 / _MIN_SCALE:
        return None
    stored = [1.0, *sorted(scalars), *(1 / s for s in sorted(scalars) if s)]
    near = [s for s in stored if abs(s - ratio) <= ROUTER_TOLERANCE * abs(ratio)]
    return min(near, key=lambda s: abs(s - ratio), default=ratio)
