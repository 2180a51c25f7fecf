"""Put a fitted router to further tests: other draws, token counts, crowds and near-ties."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from moe_export.ops.spec import TopKGating
from moe_export.optimize.gating_batch import choose, scores
from moe_export.optimize.hypothesis_error import judge
from moe_export.optimize.observation import Observation, observe
from moe_export.optimize.probes import Probes, draw_crowd, draw_probes
from moe_export.optimize.router_fit import RouterFit
from moe_export.optimize.router_slice import NoCutError, RouterSlice
from moe_export.optimize.slice_run import SliceRunner
from moe_export.runners.arrays import Array
from moe_export.tolerances import ROUTER_TIE_TOLERANCE, ROUTER_TOLERANCE


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """Outcome of the tests.

    Attributes:
        fit: With the largest error met.
        same_order: Whether the experts of a token also come in the op's order.
    """

    fit: RouterFit
    same_order: bool


def confirm(
    part: RouterSlice,
    runner: SliceRunner,
    ids: str,
    weights: str,
    fit: RouterFit,
    biases: Mapping[str, Array],
) -> Confirmation:
    """Test ``fit`` on rows that it was not made from.

    Args:
        part: The cut.
        runner: Runs it.
        ids: Name of the ids that the fit explains.
        weights: Name of their weights.
        fit: What is tested.
        biases: Vectors of the router by name.
    """
    bias = biases[fit.bias] if fit.bias is not None else None
    same_order, worst = True, fit.error
    for probes in _tests(part.num_experts, fit.attributes, bias):
        try:
            run = runner.run(probes.logits)
        except NoCutError:
            if len(probes.logits) == 1:  # the model's own sizes leave no single token
                continue
            raise
        seen = observe(part.model.graph, run, probes, ids, weights, part.top_k)
        error = judge(seen, fit.attributes, bias)
        worst = error if worst < error else worst
        same_order = same_order and _in_order(seen, fit.attributes, bias)
        if not worst.is_within(ROUTER_TOLERANCE):
            break
    return Confirmation(dataclasses.replace(fit, error=worst), same_order)


def _tests(num_experts: int, attributes: TopKGating, bias: Array | None) -> Iterator[Probes]:
    drawn = draw_probes(num_experts, seed=1)
    yield drawn
    rows = drawn.logits[drawn.ordinary]
    yield _ordinary(_near_ties(rows, attributes, bias))
    crowd = draw_crowd(num_experts, seed=2)
    yield _ordinary(crowd)
    yield _ordinary(crowd[:12])
    for row in range(3):
        yield _ordinary(rows[row : row + 1])


def _ordinary(logits: Array) -> Probes:
    return Probes(logits, np.ones(len(logits), bool))


def _near_ties(logits: Array, attributes: TopKGating, bias: Array | None) -> Array:
    """Rows in which the first expert left out comes near the last one kept, from both sides."""
    wider = dataclasses.replace(attributes, top_k=min(attributes.top_k + 1, logits.shape[1]))
    try:
        wider.check_shapes({"logits": logits.shape, "selection_bias": logits.shape[1:]})
    except ValueError:
        wider = attributes
    order = choose(scores(attributes.score_function, logits), wider, bias)
    rows = np.arange(len(logits))
    last, first_out = order[:, attributes.top_k - 1], order[:, -1]
    steps = np.resize(np.array([1e-2, -1e-2, 1e-3, -1e-3, 1e-4, -1e-4], np.float32), len(logits))
    moved = logits.copy()
    moved[rows, first_out] = logits[rows, last] + steps
    return moved[: len(moved) // 12 * 12]


def _in_order(seen: Observation, attributes: TopKGating, bias: Array | None) -> bool:
    """Whether selection scores fall along a token's experts, but for rounding."""
    rows = seen.rows(np.flatnonzero(seen.judged & ~seen.tied))
    own = choose(scores(attributes.score_function, rows.logits), attributes, bias)
    if np.array_equal(own, rows.ids):
        return True
    odd = (own != rows.ids).any(axis=1) & (rows.ids >= 0).all(axis=1)
    odd &= (rows.ids < rows.logits.shape[1]).all(axis=1)
    if not np.array_equal(own[~odd], rows.ids[~odd]):
        return False
    score = scores(attributes.score_function, rows.logits[odd])
    score = score if bias is None else score + bias
    chosen = np.take_along_axis(score, rows.ids[odd], 1).astype(np.float64)
    rise = np.diff(chosen, axis=1)
    return bool((rise <= ROUTER_TIE_TOLERANCE * np.abs(chosen[:, 1:])).all())
