"""Put a fitted router to further tests: other draws and token counts, crowds, near-ties."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from moe_export.optimize.coverage import Coverage
from moe_export.optimize.gating_batch import choose, scores
from moe_export.optimize.hypothesis_error import judge
from moe_export.optimize.observation import Observation, RoutingPair, observe
from moe_export.optimize.probes import (
    Probes,
    draw_around,
    draw_crowd,
    draw_each_expert,
    draw_near_ties,
    draw_probes,
)
from moe_export.optimize.router_fit import Ingredients, RouterFit
from moe_export.optimize.router_slice import NoCutError, RouterSlice
from moe_export.optimize.slice_run import SliceRunner
from moe_export.runners.arrays import Array
from moe_export.tolerances import ROUTER_TIE_TOLERANCE


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """Outcome of the tests.

    Attributes:
        fit: With the largest error met.
        same_order: Whether the experts of a token also come in the op's order.
        covered: Whether every condition inside was seen both ways.
    """

    fit: RouterFit
    same_order: bool
    covered: bool


def confirm(
    part: RouterSlice,
    runner: SliceRunner,
    pair: RoutingPair,
    fit: RouterFit,
    parts: Ingredients,
    coverage: Coverage,
) -> Confirmation:
    """Test ``fit`` on rows that it was not made from.

    Args:
        part: The cut.
        runner: Runs it.
        pair: The ids and weights that the fit explains.
        fit: What is tested.
        parts: The router's numbers and vectors.
        coverage: Its conditions, with what was seen so far.
    """
    bias = parts.biases[fit.bias] if fit.bias is not None else None
    same_order, worst = True, fit.error
    for probes in _tests(parts, fit, bias):
        try:
            run = runner.run(probes.logits)
        except NoCutError:
            if len(probes.logits) == 1:  # the model's own sizes leave no single token
                continue
            raise
        seen = observe(part, run, probes, pair)
        coverage.add(run, seen)
        error = judge(seen, fit.attributes, bias)
        worst = error if worst < error else worst
        same_order = same_order and _in_order(seen, fit, bias)
        if not worst.holds:
            break
    return Confirmation(dataclasses.replace(fit, error=worst), same_order, coverage.complete)


def _tests(parts: Ingredients, fit: RouterFit, bias: Array | None) -> Iterator[Probes]:
    drawn = draw_probes(parts.num_experts, seed=1)
    yield drawn
    yield draw_around(parts.num_experts, sorted(parts.scalars), list(parts.biases.values()))
    yield from draw_each_expert(parts.num_experts)
    rows = drawn.logits[drawn.ordinary]
    wider = dataclasses.replace(
        fit.attributes, top_k=min(parts.top_k + 1, parts.num_experts), num_groups=1, top_groups=1
    )
    order = choose(scores(wider.score_function, rows), wider, bias)
    yield draw_near_ties(rows, order[:, parts.top_k - 1], order[:, -1])
    crowd = draw_crowd(parts.num_experts)
    yield crowd
    for count in (12, 1, 1, 1):
        yield Probes(crowd.logits[:count], crowd.ordinary[:count])
        crowd = Probes(crowd.logits[count:], crowd.ordinary[count:])


def _in_order(seen: Observation, fit: RouterFit, bias: Array | None) -> bool:
    """Whether selection scores fall along a token's experts, but for rounding."""
    rows = seen.rows(np.flatnonzero(seen.judged & ~seen.tied))
    score = scores(fit.attributes.score_function, rows.logits)
    own = choose(score, fit.attributes, bias)
    odd = (own != rows.ids).any(axis=1)
    if not odd.any():
        return True
    ids = rows.ids[odd]
    if ((ids < 0) | (ids >= score.shape[1])).any():
        return False
    choice = score[odd] if bias is None else score[odd] + bias
    chosen = np.take_along_axis(choice, ids, 1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return bool((np.diff(chosen) <= ROUTER_TIE_TOLERANCE * np.abs(chosen[:, 1:])).all())
