"""Every routing that a layer's values may hold, the plainest first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_export.recognize.candidates import Candidate, Candidates
from moe_export.recognize.routing import (
    DenseLayout,
    DenseRouting,
    ExpertChoiceRouting,
    PairRouting,
    Routing,
    TopTokensRouting,
    to_dense,
)

_MAX_PRODUCTS = 4000


@dataclass(frozen=True)
class GuessTable:
    """Routings by what they give in the first trace.

    Attributes:
        routings: Routings that give the same, for each row of ``dense``.
        dense: ``[G, T, E]`` float64, the weights.
    """

    routings: list[list[Routing]]
    dense: Tensor


def guess_tables(candidates: Candidates, num_experts: int) -> Iterator[GuessTable]:
    """Tables of guesses, the plain ones first; made once for each set of candidates."""
    for make in (plain_guesses, joined_guesses):
        key = (make.__name__, num_experts)
        if key not in candidates.tables:
            candidates.tables[key] = _table(candidates, make(candidates, num_experts), num_experts)
        yield candidates.tables[key]


def _table(candidates: Candidates, routings: Iterator[Routing], num_experts: int) -> GuessTable:
    rows: dict[bytes, int] = {}
    found: list[list[Routing]] = []
    dense: list[Tensor] = []
    for routing in routings:
        weights = dense_weights(candidates, routing, 0, num_experts)
        key = weights.numpy().tobytes()
        if not bool(weights.any()):
            continue
        if key not in rows:
            rows[key] = len(found)
            found.append([])
            dense.append(weights)
        found[rows[key]].append(routing)
    return GuessTable(found, torch.stack(dense) if dense else torch.zeros(0))


def dense_weights(candidates: Candidates, routing: Routing, trace: int, num_experts: int) -> Tensor:
    """The weights ``[T, E]`` float64 that a routing gives in a trace."""
    alignment = candidates.alignment
    values = [t for v in routing.values if (t := alignment.tensor(v, trace)) is not None]
    tokens = candidates.tokens[trace]
    ids, weights = routing.read(values, alignment.points[trace], tokens, num_experts)
    return to_dense(ids, weights, num_experts)


def bound_choices(routing: Routing, candidates: Candidates, dense: Sequence[Tensor]) -> Routing:
    """Bound a token's experts by what is selected, if that is what is seen, else by E.

    Args:
        routing: Of any kind; only dense ones have a bound.
        candidates: Values of the layer's traces.
        dense: For each trace, the weights ``[T, E]`` that ``routing`` gives.
    """
    if not isinstance(routing, DenseRouting):
        return routing
    selected = candidates.selected(dense[0].shape[1])
    most = max(int((w != 0).sum(1).max()) for w in dense)
    return replace(routing, top_k=selected if most == selected else 0)


def plain_guesses(candidates: Candidates, num_experts: int) -> Iterator[Routing]:
    """Routings that the layer holds as they are, those that say most first.

    Args:
        candidates: Values of the layer's traces.
        num_experts: E.
    """
    dense = list(candidates.dense(num_experts))
    floats = [(c, layout) for c, layout in dense if c.tensors[0].is_floating_point()]
    yield from pair_guesses(candidates, floats, num_experts)
    for candidate, layout in (*floats, *((c, la) for c, la in dense if _is_mask(c.tensors))):
        yield DenseRouting(candidate.identity, layout)
    yield from _expert_choices(candidates, num_experts)
    yield from _top_tokens(candidates, floats)


def joined_guesses(candidates: Candidates, num_experts: int) -> Iterator[Routing]:
    """Routings put together from two values: weights, and what of them counts."""
    dense = list(candidates.dense(num_experts))
    floats = [(c, layout) for c, layout in dense if c.tensors[0].is_floating_point()]
    masks = [(c, layout) for c, layout in dense if _is_mask(c.tensors)]
    ids = {c.identity: k for c, k, _ in candidates.ids(num_experts)}
    kept = {k: list(_masks(candidates, k)) for k in {1, *ids.values()}}
    products = (
        replace(pair, kept=mask.identity, kept_by_slot=by_slot)
        for pair in pair_guesses(candidates, floats, num_experts)
        for k in dict.fromkeys((ids[pair.ids], 1))
        for mask, by_slot in kept[k]
    )
    for (candidate, layout), bound in itertools.product(floats, candidates.bounds()):
        yield DenseRouting(candidate.identity, layout, above=bound)
    yield from itertools.islice(products, _MAX_PRODUCTS)
    pairs = itertools.product(floats, masks)
    for (candidate, layout), (mask, mask_layout) in itertools.islice(pairs, _MAX_PRODUCTS):
        yield DenseRouting(candidate.identity, layout, mask.identity, mask_layout)


def _masks(candidates: Candidates, k: int) -> Iterator[tuple[Candidate, bool]]:
    for mask, goes_by in candidates.entries(k):
        if goes_by == "token" and _is_mask(mask.tensors):
            yield mask, False
    for mask in candidates.by_slot(k):
        if _is_mask(mask.tensors):
            yield mask, True


def pair_guesses(
    candidates: Candidates, dense: Sequence[tuple[Candidate, DenseLayout]], num_experts: int
) -> Iterator[PairRouting]:
    """Ids with the weights that they may have."""
    for chosen, k, goes_by in candidates.ids(num_experts):
        for weights, weights_by in candidates.entries(k):
            if weights.tensors[0].is_floating_point() and weights_by in ("token", goes_by):
                zero = any(bool((t == 0).any()) for t in weights.tensors)
                yield PairRouting(
                    chosen.identity,
                    weights.identity,
                    goes_by=goes_by,
                    weights_by=weights_by,
                    skips=zero,
                )
        for candidate, layout in dense:
            if layout == "token expert" and k < num_experts:
                yield PairRouting(
                    chosen.identity, candidate.identity, dense=True, goes_by=goes_by, skips=True
                )
        yield PairRouting(chosen.identity, None, goes_by=goes_by)


def _expert_choices(candidates: Candidates, num_experts: int) -> Iterator[ExpertChoiceRouting]:
    for chosen in candidates.chosen_tokens(num_experts):
        for weights in candidates.all:
            alike = all(
                w.shape == t.shape and w.is_floating_point()
                for w, t in zip(weights.tensors, chosen.tensors, strict=True)
            )
            if alike:
                yield ExpertChoiceRouting(chosen.identity, weights.identity)
        yield ExpertChoiceRouting(chosen.identity, None)


def _top_tokens(
    candidates: Candidates, dense: Sequence[tuple[Candidate, DenseLayout]]
) -> Iterator[TopTokensRouting]:
    counts = candidates.top_counts()
    count = candidates.alignment.fit(counts) if counts else None
    if count is None:
        return
    for candidate, layout in dense:
        if layout != "token expert slot":
            yield TopTokensRouting(candidate.identity, layout, count)


def _is_mask(tensors: Sequence[Tensor]) -> bool:
    binary = all(t.dtype == torch.bool or bool(((t == 0) | (t == 1)).all()) for t in tensors)
    return binary and any(bool((t == 0).any()) and bool((t != 0).any()) for t in tensors)
