"""Explain a value of a layer's traces as the weighted sum of a bank's experts.

Nothing is assumed of how tokens get to their experts: the sum of every candidate for the routing is
computed and compared with what eager made, in every trace.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_export.recognize.bank import ExpertBank
from moe_export.recognize.candidates import Candidate, Candidates
from moe_export.recognize.capacity import capacity_guesses
from moe_export.recognize.guesses import GuessTable, dense_weights, guess_tables
from moe_export.recognize.program import Identity
from moe_export.recognize.routing import DenseRouting, Routing, SlotRouting
from moe_export.tolerances import MATCH_TOLERANCE

# A constant on the weights below which a sum is taken for noise.
_SMALLEST = 1e-6
# Tokens of a crowd that a pair must be right for before a capacity is looked for.
_FEWEST_RIGHT = 2
# Rows and columns of an expert's output that are looked for, and the share that must be there.
_FEW, _SHARE = 6, 0.5


@dataclass(frozen=True)
class Match:
    """Where the experts are in the traces.

    Attributes:
        bank: The experts.
        rows: The value that holds their rows.
        routing: Which rows go where.
        sums: For each trace, the values that hold the experts' weighted sum, last first.
        idle: Whether a token without an expert keeps its row instead of zero.
    """

    bank: ExpertBank
    rows: Identity
    routing: Routing
    sums: tuple[tuple[int, ...], ...]
    idle: bool = False


def find_matches(candidates: Candidates, bank: ExpertBank) -> Iterator[Match]:
    """Every explanation of the traces by ``bank``: by token first, then by slot."""
    targets = _Targets(candidates, bank.sizes[1])
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
                sums = targets.confirm(dense, outputs, kept, idle)
                if sums is not None:
                    bounded = _bound(routing, candidates, dense)
                    yield Match(bank, rows.identity, bounded, sums, idle)
    yield from _slot_matches(candidates, bank)


def find_capacity_matches(candidates: Candidates, bank: ExpertBank) -> Iterator[Match]:
    """Explanations in which experts take the first C tokens that chose them."""
    targets = _Targets(candidates, bank.sizes[1])
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


def _bound(routing: Routing, candidates: Candidates, dense: Sequence[Tensor]) -> Routing:
    """Bound a token's experts by what is selected, if that is what is seen, else by E."""
    if not isinstance(routing, DenseRouting):
        return routing
    selected = candidates.selected(dense[0].shape[1])
    most = max(int((w != 0).sum(1).max()) for w in dense)
    return replace(routing, top_k=selected if most == selected else 0)


def _appears(candidates: Candidates, bank: ExpertBank, rows: Tensor) -> bool:
    """Whether each of a few rows has some expert's output, unweighted, in the first trace."""
    numbers = candidates.numbers
    some = bank.outputs(rows[:_FEW])[..., :_FEW]  # [E, rows, columns]
    there = numbers.contain(some).all(2).any(0)
    return float(there.double().mean()) >= _SHARE


class _Targets:
    """Values that may be the experts' sum, projected on one direction for a quick comparison."""

    def __init__(self, candidates: Candidates, width: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.direction = torch.randn(width, generator=generator, dtype=torch.float64)
        self._width = width
        self._numbers: list[list[int]] = []
        self._projected: list[Tensor] = []
        traces, tokens = candidates.alignment.traces, candidates.tokens
        for trace, count in zip(traces, tokens, strict=True):
            fits = [
                n
                for n, v in enumerate(trace.values)
                if v.tensor.is_floating_point() and v.op is not None
                and v.tensor.shape[-1:] == (width,) and v.tensor.numel() == count * width
            ]  # fmt: skip
            rows = [trace.values[n].tensor.detach().reshape(-1, width).double() for n in fits]
            self._numbers.append(fits)
            empty = torch.zeros(0, count, dtype=torch.float64)
            self._projected.append(
                torch.stack([r @ self.direction for r in rows]) if fits else empty
            )
        self._traces = traces

    def explain(
        self, guesses: GuessTable, projected: Tensor, rows: Tensor
    ) -> Iterator[tuple[Routing, bool]]:
        """Routings, and whether idle tokens keep their rows, that fit the first trace."""
        seen = self._projected[0]
        if not len(seen) or not guesses.routings:
            return
        found = torch.einsum("gte,te->gt", guesses.dense, projected)
        yield from ((r, False) for r in self._fitting(guesses, found))
        if rows.shape[1] == self._width:
            idle = (guesses.dense == 0).all(2)
            passed = torch.where(idle, rows @ self.direction, found)
            served = (found.abs() > 0).any(1)
            near = self._near(passed[:, None], seen).any(1) & idle.any(1) & served
            for index in near.nonzero()[:, 0].tolist():
                yield from ((routing, True) for routing in guesses.routings[index])

    def _fitting(self, guesses: GuessTable, found: Tensor) -> Iterator[Routing]:
        seen = self._projected[0]
        power = (found * found).sum(1).clamp(min=1e-300)
        ratio = (found @ seen.T) / power[:, None]  # [G, Y]
        near = self._near(ratio[..., None] * found[:, None], seen) & (ratio.abs() > _SMALLEST)
        for index in near.any(1).nonzero()[:, 0].tolist():
            factors = {_rounded(float(f)) for f in ratio[index][near[index]]}
            for factor in sorted(factors, key=lambda f: f != 1.0):
                for routing in guesses.routings[index]:
                    yield replace(routing, factor=factor)

    def _near(self, found: Tensor, seen: Tensor) -> Tensor:
        """``[G, Y]`` of found ``[G, 1 or Y, T]`` and seen ``[Y, T]``."""
        return (seen - found).abs().amax(2) <= MATCH_TOLERANCE * seen.abs().amax(1)

    def partly(self, dense: Tensor, outputs: Tensor) -> bool:
        """Whether the weighted sum is right for some tokens of the last trace."""
        total = torch.einsum("te,eth->th", dense, outputs) @ self.direction
        seen = self._projected[-1]
        limit = MATCH_TOLERANCE * float(total.abs().max()) * float(self.direction.norm())
        right = ((seen - total).abs() <= limit) & (total.abs() > limit)
        return bool(right.any(1).any()) and int(right.sum(1).max()) >= _FEWEST_RIGHT

    def confirm(
        self,
        dense: Sequence[Tensor],
        outputs: Sequence[Tensor],
        rows: Sequence[Tensor],
        idle: bool,
    ) -> tuple[tuple[int, ...], ...] | None:
        """In every trace, the values equal to the weighted sum; None if a trace has none."""
        found = []
        for n, (w, out) in enumerate(zip(dense, outputs, strict=True)):
            equal = self.equal(n, self.total(w, out, rows[n], idle=idle))
            if not equal:
                return None
            found.append(equal)
        return tuple(found)

    def total(self, dense: Tensor, outputs: Tensor, rows: Tensor, *, idle: bool) -> Tensor:
        """The weighted sum ``[T, width]``; with ``idle``, tokens without experts keep their row."""
        total = torch.einsum("te,eth->th", dense, outputs)
        if idle and rows.shape == total.shape:
            total = torch.where((dense == 0).all(1, keepdim=True), rows.double(), total)
        return total

    def equal(self, trace: int, total: Tensor) -> tuple[int, ...]:
        """The values of a trace equal to ``total [T, width]``, last first."""
        scale = float(total.abs().max())
        near = (self._projected[trace] - total @ self.direction).abs().amax(1)
        limit = MATCH_TOLERANCE * float(self.direction.norm()) * scale
        values = self._traces[trace].values
        return tuple(
            number
            for number, distance in reversed(
                list(zip(self._numbers[trace], near.tolist(), strict=True))
            )
            if distance <= limit
            and bool(
                (values[number].tensor.detach().reshape(total.shape).double() - total).abs().max()
                <= MATCH_TOLERANCE * scale
            )
        )


def _rounded(factor: float) -> float:
    """A factor as a configuration would say it."""
    near = round(factor, 4)
    return near if abs(near - factor) <= 1e-5 * abs(factor) else factor


def _slot_matches(candidates: Candidates, bank: ExpertBank) -> Iterator[Match]:
    """Rows that lie by expert: an axis whose size is a multiple of E, expert 0's rows first."""
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
                yield Match(bank, c.identity, SlotRouting(axis), sums)


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
        flat = by_expert.reshape(bank.num_experts, -1, bank.sizes[0])
        with torch.no_grad():
            made = torch.stack([bank.expert(e, flat[e]) for e in range(bank.num_experts)])
        made = made.reshape(*by_expert.shape[:-1], bank.sizes[1]).movedim(0, axis).reshape(shape)
        limit = MATCH_TOLERANCE * float(made.abs().max())
        equal = tuple(n for n, t in reversed(alike) if float((t - made).abs().max()) <= limit)
        if not equal:
            return None
        found.append(equal)
    return tuple(found)
