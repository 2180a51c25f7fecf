"""Explain a value of a layer's traces as the weighted sum of a bank's experts.

Nothing is assumed of how tokens get to their experts: the sum of every candidate for the routing is
computed and compared with what eager made, in every trace.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from torch import Tensor

from moe_export.recognize.bank import ExpertBank
from moe_export.recognize.candidates import Candidates
from moe_export.recognize.capacity import capacity_guesses
from moe_export.recognize.guesses import bound_choices, dense_weights, guess_tables
from moe_export.recognize.slots import slot_matches
from moe_export.recognize.targets import Match, Targets

# Rows and columns of an expert's output that are looked for, and the share that must be there.
_FEW, _SHARE = 6, 0.5


def find_matches(candidates: Candidates, bank: ExpertBank) -> Iterator[Match]:
    """Every explanation of the traces by ``bank``: by token first, then by slot."""
    targets = Targets(candidates, bank.sizes[1])
    for rows in candidates.rows(bank.sizes[0]):
        kept = [t.reshape(-1, bank.sizes[0]) for t in rows.tensors]
        outputs = [bank.outputs(kept[0]).double()]
        projected = (outputs[0] @ targets.direction).T
        for guesses in guess_tables(candidates, bank.num_experts):
            for routing, idle in targets.explain(guesses, projected, kept[0].double()):
                if len(outputs) == 1:
                    outputs += [bank.outputs(k).double() for k in kept[1:]]
                dense = [
                    dense_weights(candidates, routing, n, bank.num_experts)
                    for n in range(len(kept))
                ]
                if not _is_routing(bank, dense):
                    continue
                sums = targets.confirm(dense, outputs, kept, idle)
                if sums is not None:
                    bounded = bound_choices(routing, candidates, dense)
                    yield Match(bank, rows.identity, bounded, sums, idle)
    yield from slot_matches(candidates, bank, targets)


def find_capacity_matches(candidates: Candidates, bank: ExpertBank) -> Iterator[Match]:
    """Explanations in which experts take the first C tokens that chose them."""
    targets = Targets(candidates, bank.sizes[1])
    for rows in candidates.rows(bank.sizes[0]):
        kept = [t.reshape(-1, bank.sizes[0]) for t in rows.tensors]
        if not _appears(candidates, bank, kept[0]):
            continue
        outputs = [bank.outputs(k).double() for k in kept]
        for limited, idle in itertools.product(
            capacity_guesses(candidates, bank.num_experts), (False, True)
        ):

            def explains(
                trace: int, dense: Tensor, idle: bool = idle, given: list[Tensor] = kept,
                made: list[Tensor] = outputs,
            ) -> bool:  # fmt: skip
                total = targets.total(dense, made[trace], given[trace], idle=idle)
                return bool(total.any()) and bool(targets.equal(trace, total))

            if not targets.partly(limited.first_dense(), outputs[-1]):
                continue
            routing = limited.fit(explains)
            if routing is None:
                continue
            dense = [
                dense_weights(candidates, routing, n, bank.num_experts) for n in range(len(kept))
            ]
            sums = targets.confirm(dense, outputs, kept, idle)
            if sums is not None:
                yield Match(bank, rows.identity, routing, sums, idle)


def _is_routing(bank: ExpertBank, dense: Sequence[Tensor]) -> bool:
    """Whether tokens differ in their experts; blocks of a dense layer's matrix all add up."""
    return bool(bank.modules) or any(bool((w != w[0, 0]).any()) for w in dense)


def _appears(candidates: Candidates, bank: ExpertBank, rows: Tensor) -> bool:
    """Whether each of a few rows has some expert's output, unweighted, in the first trace."""
    numbers = candidates.numbers
    some = bank.outputs(rows[:_FEW])[..., :_FEW]  # [E, rows, columns]
    there = numbers.contain(some).all(2).any(0)
    return float(there.double().mean()) >= _SHARE
