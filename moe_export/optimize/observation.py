"""What a router was seen to do: ids and weights per row, and which rows say something."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from moe_export.optimize.probes import Probes
from moe_export.optimize.router_slice import RouterSlice
from moe_export.optimize.slice_run import SliceRun
from moe_export.runners.arrays import Array
from moe_export.tolerances import ROUTER_TIE_TOLERANCE

# A weight below this adds nothing that float32 could show.
NOTHING = 1e-30
_MIN_WEIGHTED_SHARE = 0.9
# Share of ordinary rows above which equal scores are no accident.
_MAX_TIED_SHARE = 0.5
_ARRAYS = ("logits", "ids", "weights", "ordinary", "tied", "judged")
SELECTORS = ("TopK", "ArgMax", "ArgMin", "ReduceMax")


@dataclass(frozen=True)
class RoutingPair:
    """Values of a cut, of ``T * K`` elements each, that may be ids and weights.

    Attributes:
        ids, weights: Their names.
        only_summed: Whether they are the layer's own, and nothing reads them but a sum over the
            experts.
        after: Names of the values between them and the layer's own, these included.
    """

    ids: str
    weights: str
    only_summed: bool
    after: frozenset[str]

    @property
    def own(self) -> bool:
        """Whether they are the layer's own, not values inside the router."""
        return not self.after


@dataclass(frozen=True)
class Observation:
    """A router's results on probes.

    Attributes:
        logits: ``[T, E]``.
        ids: ``[T, K]`` int64.
        weights: ``[T, K]`` float32.
        ordinary: ``[T]``, rows of the size that logits have in models.
        tied: ``[T]``, rows on which the router itself chose between scores equal but for rounding.
        judged: ``[T]``, all ordinary rows, and the others where nothing inside overflowed.
        only_summed: Whether ids and weights serve a sum over the experts alone, in which their
            order does not matter and an expert with weight zero adds nothing.
    """

    logits: Array
    ids: Array
    weights: Array
    ordinary: Array
    tied: Array
    judged: Array
    only_summed: bool

    def rows(self, index: Array) -> Observation:
        """The rows at ``index``."""
        arrays = {name: value[index] for name, value in vars(self).items() if name in _ARRAYS}
        return dataclasses.replace(self, **arrays)

    @property
    def routes(self) -> bool:
        """Whether most ordinary rows give some expert a weight."""
        weighted = np.abs(self.weights[self.ordinary]).max(axis=1) > NOTHING
        return bool(weighted.mean() > _MIN_WEIGHTED_SHARE)


def observe(part: RouterSlice, run: SliceRun, probes: Probes, pair: RoutingPair) -> Observation:
    """Read one pair of values of a run.

    Args:
        part: The cut that ran.
        run: The run, on ``probes``.
        probes: Its logits.
        pair: The values that are taken for ids and weights.
    """
    shape = (len(run.logits), part.top_k)
    found = np.asarray(run.values[pair.weights], np.float32).reshape(shape)
    overflows = _overflowing_rows(run, probes.ordinary) | np.isnan(found).any(axis=1)
    return Observation(
        logits=run.logits,
        ids=np.asarray(run.values[pair.ids], np.int64).reshape(shape),
        weights=found,
        ordinary=probes.ordinary,
        tied=_tied_rows(part.model.graph, run, probes.ordinary, part.top_k),
        judged=probes.ordinary | ~overflows,
        only_summed=pair.only_summed,
    )


def _overflowing_rows(run: SliceRun, ordinary: Array) -> Array:
    """Rows with a NaN or +infinity in a value that never has one on ordinary rows."""
    tokens = len(run.logits)
    found = np.zeros(tokens, bool)
    for value in run.values.values():
        if value.dtype.kind == "f" and value.size and value.size % tokens == 0:
            rows = value.reshape(tokens, -1)
            bad: Array = (np.isnan(rows) | np.isposinf(rows)).max(axis=1)
            if not bad[ordinary].any():
                found |= bad
    return found


def _tied_rows(graph: ir.Graph, run: SliceRun, ordinary: Array, top_k: int) -> Array:
    """Rows on which some selection inside has its last kept score next to one left out."""
    tokens = len(run.logits)
    tied = np.zeros(tokens, bool)
    for scores, kept in _selections(graph, run, top_k):
        if scores.size == 0 or scores.size % (tokens * scores.shape[-1]):
            continue  # it selects among tokens
        best = -np.sort(-scores.reshape(tokens, -1, scores.shape[-1]).astype(np.float64), axis=2)
        last, first_out = best[:, :, kept - 1], best[:, :, kept]
        with np.errstate(invalid="ignore"):
            size = np.maximum(np.abs(last), np.abs(first_out))
            near = (last == first_out) | (last - first_out <= ROUTER_TIE_TOLERANCE * size)
        rows: Array = near.max(axis=1)
        # Scores that are always equal there, as those of masked experts, are no choice.
        if not rows[ordinary].mean() > _MAX_TIED_SHARE:
            tied |= rows
    return tied


def _selections(graph: ir.Graph, run: SliceRun, top_k: int) -> Iterator[tuple[Array, int]]:
    """Scores that nodes select from along their last axis, turned so that the largest win."""
    known = {**run.values, str(graph.inputs[0].name): run.logits}
    for node in graph:
        if node.op_type not in SELECTORS or node.inputs[0] is None:
            continue
        scores = known.get(str(node.inputs[0].name))
        attributes = {name: a.value for name, a in node.attributes.items()}
        last = (-1, *(() if scores is None else (scores.ndim - 1,)))
        if scores is None or attributes.get("axis", -1) not in last:
            continue
        smallest = node.op_type == "ArgMin" or attributes.get("largest") == 0
        kept, size = 1, scores.shape[-1]
        if node.op_type == "TopK":
            kept = next(known[v.name].shape[-1] for v in node.outputs if v.name in known)
        if kept < size:
            yield (-scores if smallest else scores), kept
        elif top_k < size:  # a whole sort, of which either end may be kept
            yield scores, top_k
            yield -scores, top_k
