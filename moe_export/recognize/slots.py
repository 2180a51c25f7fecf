"""Explain rows that lie by expert: slots of a token mixture, or every token for every expert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from moe_export.ops.spec import GroupedExperts
from moe_export.recognize.bank import ExpertBank
from moe_export.recognize.candidates import Candidate, Candidates
from moe_export.recognize.guesses import bound_choices, dense_weights, guess_tables
from moe_export.recognize.routing import Routing, SlotRouting
from moe_export.recognize.targets import Match, Targets
from moe_export.tolerances import MATCH_TOLERANCE


def slot_matches(candidates: Candidates, bank: ExpertBank, targets: Targets) -> Iterator[Match]:
    """Rows that lie by expert: an axis whose size is a multiple of E, expert 0's rows first.

    Where these rows are the tokens, each times its weight for the expert, the weights are a
    routing, and a weight of zero is an expert that need not run.
    """
    width, num_experts = bank.sizes[0], bank.num_experts
    for c in candidates.all:
        first = c.tensors[0]
        if not first.is_floating_point() or first.dim() < 2 or first.shape[-1] != width:
            continue
        for axis in range(first.dim() - 1):
            if any(t.shape[axis] % num_experts for t in c.tensors):
                continue
            sums = _slot_sums(candidates, bank, c, axis)
            if sums is not None:
                yield from _weighted_tokens(candidates, bank, targets, c, axis)
                yield Match(bank, c.identity, SlotRouting(axis), sums)


def _by_expert(tensor: Tensor, axis: int, num_experts: int) -> Tensor:
    """``[E, rows, H]`` of rows that lie by expert along ``axis``."""
    moved: Tensor = tensor.unflatten(axis, (num_experts, -1)).movedim(axis, 0)
    return moved.reshape(num_experts, -1, tensor.shape[-1])


def _slot_sums(
    candidates: Candidates, bank: ExpertBank, rows: Candidate, axis: int
) -> tuple[tuple[int, ...], ...] | None:
    found = []
    for trace, tensor in zip(candidates.alignment.traces, rows.tensors, strict=True):
        shape = (*tensor.shape[:-1], bank.sizes[1])
        alike = [
            (n, v.tensor.detach())
            for n, v in enumerate(trace.values)
            if v.op is not None and v.tensor.shape == shape and v.tensor.is_floating_point()
        ]
        if not alike:
            return None
        by_expert = tensor.unflatten(axis, (bank.num_experts, -1)).movedim(axis, 0)
        made = _outputs(bank, _by_expert(tensor, axis, bank.num_experts))
        made = made.reshape(*by_expert.shape[:-1], bank.sizes[1]).movedim(0, axis).reshape(shape)
        limit = MATCH_TOLERANCE * float(made.abs().max())
        equal = tuple(n for n, t in reversed(alike) if float((t - made).abs().max()) <= limit)
        if not equal:
            return None
        found.append(equal)
    return tuple(found)


def _outputs(bank: ExpertBank, by_expert: Tensor) -> Tensor:
    """Every expert on its own rows ``[E, rows, H]``."""
    with torch.no_grad():
        return torch.stack([bank.expert(e, by_expert[e]) for e in range(bank.num_experts)])


def _weighted_tokens(
    candidates: Candidates, bank: ExpertBank, targets: Targets, slots: Candidate, axis: int
) -> Iterator[Match]:
    """Explanations of the slots as tokens times weights, summed over the experts."""
    if not isinstance(bank.form, GroupedExperts) or not _keeps_zero(bank):
        return
    given = [_by_expert(t, axis, bank.num_experts) for t in slots.tensors]
    sums = []
    for trace, by_expert in enumerate(given):
        if by_expert.shape[1] != candidates.tokens[trace]:
            return
        equal = targets.equal(trace, _outputs(bank, by_expert).double().sum(0))
        if not equal:
            return
        sums.append(equal)
    weighted = replace(bank, form=replace(bank.form, weight_on="input"))
    for rows in candidates.rows(bank.sizes[0]):
        kept = [t.reshape(-1, bank.sizes[0]) for t in rows.tensors]
        for routing, dense in _weightings(candidates, bank, kept, given):
            bounded = bound_choices(routing, candidates, dense)
            yield Match(weighted, rows.identity, bounded, tuple(sums))


def _weightings(
    candidates: Candidates, bank: ExpertBank, rows: Sequence[Tensor], given: Sequence[Tensor]
) -> Iterator[tuple[Routing, list[Tensor]]]:
    """Routings by whose weights ``rows [T, H]`` become ``given [E, T, H]``, with the weights."""

    def fits(weights: Tensor, trace: int) -> bool:
        made = weights.T[..., None] * rows[trace].double()
        limit = MATCH_TOLERANCE * float(given[trace].abs().max())
        return float((made - given[trace]).abs().max()) <= limit

    for guesses in guess_tables(candidates, bank.num_experts):
        for number, routings in enumerate(guesses.routings):
            if not fits(guesses.dense[number], 0):
                continue
            for routing in routings:
                dense = [
                    dense_weights(candidates, routing, n, bank.num_experts)
                    for n in range(len(given))
                ]
                if all(fits(w, n) for n, w in enumerate(dense)):
                    yield routing, dense


def _keeps_zero(bank: ExpertBank) -> bool:
    """Whether every expert makes zero of a row of zeros."""
    nothing = torch.zeros(bank.num_experts, 1, bank.sizes[0])
    return not bool(_outputs(bank, nothing).any())
