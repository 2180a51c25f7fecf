"""Where the experts' weighted sum may be in a layer's traces, and the record of where it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_export.recognize.bank import ExpertBank
from moe_export.recognize.candidates import Candidates
from moe_export.recognize.guesses import GuessTable
from moe_export.recognize.program import Identity
from moe_export.recognize.routing import Routing
from moe_export.tolerances import MATCH_TOLERANCE

# A constant on the weights below which a sum is taken for noise.
_SMALLEST = 1e-6
# Tokens of a crowd that a pair must be right for before a capacity is looked for.
_FEWEST_RIGHT = 2


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


class Targets:
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
