"""How far a hypothesis about a router is from what the router was seen to do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_export.ops.spec import TopKGating
from moe_export.optimize.gating_batch import choose, scores, weigh
from moe_export.optimize.observation import NOTHING, Observation
from moe_export.runners.arrays import Array
from moe_export.tolerances import ROUTER_EXTREME_FACTOR, ROUTER_TOLERANCE

# Weight errors below this are rounding: the simpler of two such hypotheses is as good.
_ROUNDING = 5e-7
# Weights of both signs that cancel in their sum: beyond this the sum is rounding.
_MAX_CANCELLATION = 1e3


@dataclass(frozen=True)
class HypothesisError:
    """How far off a hypothesis is.

    Attributes:
        wrong_rows: Share of the judged rows on which other experts get a weight.
        other_choices: Rows on which the hypothesis alone, without the router's own choice between
            ties, would take other experts.
        weight_error: Largest error of a weight relative to that weight, on the other rows.
    """

    wrong_rows: float
    other_choices: int
    weight_error: float

    @property
    def is_rounding(self) -> bool:
        """Whether no hypothesis could come nearer."""
        return self.holds and self.other_choices == 0 and self.weight_error <= _ROUNDING

    def __lt__(self, other: HypothesisError) -> bool:
        """Whether this one is nearer: it holds, or comes nearer to that.

        Of two that hold, that is nearer which leaves less to ties; rounding alone says nothing.
        """
        return self._key() < other._key()

    def _key(self) -> tuple[bool, float, float]:
        if self.holds:
            return False, self.other_choices, max(self.weight_error, _ROUNDING)
        return True, self.wrong_rows, self.weight_error

    @property
    def holds(self) -> bool:
        """Whether the same experts get the same weights."""
        return self.wrong_rows == 0 and self.weight_error <= ROUTER_TOLERANCE


def same_experts(ids: Array, others: Array) -> Array:
    """``[T]``, rows with the same experts in any order."""
    same: Array = (np.sort(ids, axis=1) == np.sort(others, axis=1)).all(axis=1)
    return same


def judge(seen: Observation, attributes: TopKGating, bias: Array | None) -> HypothesisError:
    """Compare a hypothesis with everything that was seen.

    A row is compared as a set of (expert, weight). On rows that the router itself calls tied its
    choice is taken over, if the hypothesis allows it within rounding.
    """
    score = scores(attributes.score_function, seen.logits)
    own = choose(score, attributes, bias)
    differs = ~same_experts(own, seen.ids)
    ids = np.where(_may_choose(seen, score, attributes, bias, differs)[:, None], seen.ids, own)
    weights = weigh(seen.logits, score, ids, attributes)
    row_error = _row_errors(seen, ids, weights) / _allowance(seen, weights, attributes)
    # A number where the router has one is asked for even where the sum is rounding.
    row_error[np.isfinite(seen.weights).all(axis=1) & ~np.isfinite(weights).all(axis=1)] = np.inf
    judged = row_error[seen.judged & ~np.isnan(row_error)]
    wrong = np.isinf(judged)
    return HypothesisError(
        wrong_rows=float(wrong.mean()) if judged.size else 1.0,
        other_choices=int((differs & seen.judged).sum()),
        weight_error=float(judged[~wrong].max(initial=0.0)) if not wrong.all() else float("inf"),
    )


def _may_choose(
    seen: Observation,
    score: Array,
    attributes: TopKGating,
    bias: Array | None,
    differs: Array,
) -> Array:
    """``[T]``, tied rows on which the router's other choice is right for the hypothesis too."""
    in_range = ((seen.ids >= 0) & (seen.ids < score.shape[1])).all(axis=1)
    allowed = np.zeros(len(differs), bool)
    rows = np.flatnonzero(differs & seen.tied & in_range)
    if rows.size:
        favored = choose(score[rows], attributes, bias, seen.ids[rows])
        allowed[rows] = same_experts(favored, seen.ids[rows])
    return allowed


def _row_errors(seen: Observation, ids: Array, weights: Array) -> Array:
    """``[T]``: the largest relative error of a weight; infinite where other experts get one.

    Where more than a sum reads them, the experts must also be the same where their weight is zero.
    """
    num_experts = seen.logits.shape[1]
    found, expected = (
        _spread(ids, weights, num_experts),
        _spread(seen.ids, seen.weights, num_experts),
    )
    size = np.maximum(np.abs(found), np.abs(expected))
    with np.errstate(invalid="ignore"):
        error = np.where(size > NOTHING, np.abs(found - expected) / size, 0.0)
    odd = ~np.isfinite(found) | ~np.isfinite(expected)
    error = np.where(odd, np.where(found == expected, 0.0, np.inf), error)
    # A relative error of 1 is a weight on one side alone.
    error[error >= 1.0] = np.inf
    if not seen.only_summed:
        error[~same_experts(ids, seen.ids)] = np.inf
    largest: Array = error.max(axis=1)
    return largest


def _spread(ids: Array, weights: Array, num_experts: int) -> Array:
    """``[T, E]`` weights; an id out of range adds nothing."""
    rows = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
    inside = (ids >= 0) & (ids < num_experts)
    spread = np.zeros((len(ids), num_experts))
    np.add.at(spread, (rows[inside], ids[inside]), weights[inside].astype(np.float64))
    return spread


def _allowance(seen: Observation, weights: Array, attributes: TopKGating) -> Array:
    """``[T]``: what a row's error is divided by; NaN for rows that say nothing."""
    allowance = np.where(seen.ordinary, 1.0, ROUTER_EXTREME_FACTOR)
    if attributes.renormalize and attributes.score_function == "identity":
        chosen = np.abs(weights.astype(np.float64))
        with np.errstate(all="ignore"):
            cancellation = chosen.sum(axis=1) / np.abs(weights.astype(np.float64).sum(axis=1))
        cancellation = np.where(np.isfinite(cancellation), np.maximum(cancellation, 1.0), np.inf)
        allowance = np.where(cancellation <= _MAX_CANCELLATION, allowance * cancellation, np.nan)
    return allowance
