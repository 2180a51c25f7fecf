"""Capacities that eager applies by cutting lists of tokens: the record holds no mask of them.

An expert that takes the first C of the tokens that chose it shows in the numbers alone. For each
trace the values of C that explain it are found; where tokens were dropped there is just one; and
those are explained as a function of the shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_export.recognize.candidates import Candidates
from moe_export.recognize.guesses import dense_weights, pair_guesses
from moe_export.recognize.program import Identity
from moe_export.recognize.routing import CapacityRouting, PairRouting, places, to_dense
from moe_export.recognize.sizes import Size, fit_number

# Whether dense weights [T, E] explain a trace.
Explains = Callable[[int, Tensor], bool]
# Traces with dropped tokens that a capacity must be seen in.
_FEWEST = 2
# Tokens of a trace in which every capacity is tried; in others, those this near to the expected.
_SMALL, _NEAR = 50, 6


@dataclass(frozen=True)
class CapacityGuess:
    """A pair, and an order in which experts take tokens; the capacity is still to be found.

    Attributes:
        candidates: Values of the traces.
        pair: What tokens choose.
        order: See ``CapacityRouting``.
        by_slot: See ``CapacityRouting``.
        num_experts: E.
    """

    candidates: Candidates
    pair: PairRouting
    order: Identity | None
    by_slot: bool
    num_experts: int

    def first_dense(self) -> Tensor:
        """The weights ``[T, E]`` in the last trace, with nothing dropped."""
        return dense_weights(
            self.candidates, self.pair, len(self.candidates.tokens) - 1, self.num_experts
        )

    def fit(self, explains: Explains) -> CapacityRouting | None:
        """The routing with its capacity; None if no capacity explains the traces."""
        points = self.candidates.alignment.points
        found: dict[int, int] = {}
        least: dict[int, int] = {}
        # The crowds that come last are small; larger ones only refine what those say.
        order = sorted(range(len(points)), key=lambda n: (self.candidates.tokens[n] > _SMALL, -n))
        for trace in order:
            ids, weights, position = self._read(trace)
            chosen = position[ids < self.num_experts]
            most = int(chosen.max()) + 1 if chosen.numel() else 0
            counts: Sequence[int] = range(1, most + 1)
            if self.candidates.tokens[trace] > _SMALL:
                size = self._size(found, least)
                if size is None:
                    return None
                counts = [
                    c for c in counts if abs(c - _at(size, points[trace])) <= _NEAR or c == most
                ]
            fitting = [
                count
                for count in counts
                if explains(trace, self._dense(ids, weights, position, count))
            ]
            if not fitting:
                return None
            if min(fitting) < most:
                found[trace] = min(fitting)
            else:
                least[trace] = most
        size = self._size(found, least)
        return None if size is None else CapacityRouting(self.pair, size, self.order, self.by_slot)

    def _size(self, found: Mapping[int, int], least: Mapping[int, int]) -> Size | int | None:
        """A size that is ``found`` in some traces, and at least ``least`` in others."""
        points = self.candidates.alignment.points
        if len(found) < _FEWEST:
            return None
        hints = self.candidates.alignment.hints
        size: Size | int | None = fit_number(
            list(found.values()), [points[n] for n in found], hints=hints
        )
        if size is None or not all(_at(size, points[n]) >= count for n, count in least.items()):
            return None
        return size

    def _read(self, trace: int) -> tuple[Tensor, Tensor, Tensor]:
        alignment, rows = self.candidates.alignment, self.candidates.tokens[trace]
        values = [t for v in self.pair.values if (t := alignment.tensor(v, trace)) is not None]
        point = alignment.points[trace]
        ids, weights = self.pair.read(values, point, rows, self.num_experts)
        order = None if self.order is None else alignment.tensor(self.order, trace)
        order = None if order is None else order.reshape(rows)
        position = places(ids, order, self.num_experts, by_slot=self.by_slot)
        return ids, weights, position

    def _dense(self, ids: Tensor, weights: Tensor, position: Tensor, count: int) -> Tensor:
        kept = torch.where(position < count, ids, self.num_experts)
        return to_dense(kept, weights, self.num_experts)


def capacity_guesses(candidates: Candidates, num_experts: int) -> Iterator[CapacityGuess]:
    """Every pair with every order in which its tokens may be taken."""
    dense = list(candidates.dense(num_experts))
    floats = [(c, layout) for c, layout in dense if c.tensors[0].is_floating_point()]
    orders: list[Identity | None] = [None, *(c.identity for c in candidates.orders())]
    for pair in pair_guesses(candidates, floats, num_experts):
        for order in orders:
            for by_slot in (False, True):
                yield CapacityGuess(candidates, pair, order, by_slot, num_experts)


def _at(size: Size | int, point: tuple[int, ...]) -> int:
    return int(size.at(point)) if isinstance(size, Size) else size
