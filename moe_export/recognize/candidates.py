"""Values of a layer's traces that may hold rows, routing or the experts' sum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from moe_export.recognize.program import Alignment, Identity
from moe_export.recognize.recorded_products import RecordedNumbers
from moe_export.recognize.routing import DenseLayout, GoesBy
from moe_export.recognize.trace import Trace

_SELECTIONS = ("aten::topk", "aten::max.dim", "aten::argmax")
_CHOICES = (*_SELECTIONS, "aten::_softmax", "aten::sort", "aten::sigmoid")
_COMPARISONS = ("gt", "ge", "lt", "le")
_INTEGERS = (torch.int64, torch.int32)


@dataclass(frozen=True)
class Candidate:
    """A value that is there in every trace and can be computed again.

    Attributes:
        identity: The value.
        tensors: What it was, by trace.
    """

    identity: Identity
    tensors: tuple[Tensor, ...]


class Candidates:
    """Search the values of aligned traces; among values of equal content, the first is kept.

    Args:
        alignment: The traces.
    """

    def __init__(self, alignment: Alignment) -> None:
        self.alignment = alignment
        self.tokens = [math.prod(point) for point in alignment.points]
        self.tables: dict[tuple[str, int], Any] = {}

    @cached_property
    def numbers(self) -> RecordedNumbers:
        """The numbers of the first trace."""
        return RecordedNumbers(self.alignment.traces[0])

    @cached_property
    def all(self) -> list[Candidate]:
        """Every value that goes by token and can be computed again."""
        found: dict[bytes, Candidate] = {}
        for number, value in enumerate(self.alignment.traces[0].values):
            identity = self.alignment.identity(number)
            stored = value.leaf is not None and value.leaf[0] != "input"
            if stored or value.tensor.numel() == 0 or self.alignment.is_data_dependent(identity):
                continue
            tensors = [self.alignment.tensor(identity, n) for n in range(len(self.tokens))]
            known = tuple(t.detach() for t in tensors if t is not None)
            if len({t.numel() for t in known}) == 1 and len(set(self.tokens)) > 1:
                continue  # one size at every shape: it does not go by token
            found.setdefault(_signature(known), Candidate(identity, known))
        return list(found.values())

    def rows(self, width: int) -> list[Candidate]:
        """Float values with one row of ``width`` for each token; the layer's input comes first."""
        return [
            c
            for c in self.all
            if all(
                t.is_floating_point() and t.shape[-1:] == (width,) and t.numel() == n * width
                for t, n in self._each(c)
            )
        ]

    def ids(self, num_experts: int) -> Iterator[tuple[Candidate, int, GoesBy]]:
        """Integers that can be expert ids: each with K, and what they go by."""
        for c in self.all:
            if c.tensors[0].dtype in _INTEGERS and self._in_range(c, 2 * num_experts):
                for goes_by, k in self._counts(c):
                    if k <= num_experts:
                        yield c, k, goes_by

    def entries(self, k: int) -> Iterator[tuple[Candidate, GoesBy]]:
        """Values with K entries for each token, position or sequence."""
        for c in self.all:
            for goes_by, count in self._counts(c):
                if count == k:
                    yield c, goes_by

    def by_slot(self, k: int) -> list[Candidate]:
        """Values with an entry for each first choice, then each second one."""
        return [
            c
            for c in self.all
            if k > 1 and all(
                t.numel() == n * k and (t.dim() == 1 or t.shape[0] == k) for t, n in self._each(c)
            )
        ]  # fmt: skip

    def orders(self) -> list[Candidate]:
        """Permutations of the tokens."""
        return [
            c
            for c in self.all
            if c.tensors[0].dtype in _INTEGERS
            and all(
                t.numel() == n and bool((t.reshape(-1).sort().values == torch.arange(n)).all())
                for t, n in self._each(c)
            )
            and not all(bool((t.reshape(-1) == torch.arange(n)).all()) for t, n in self._each(c))
        ]

    def bounds(self) -> list[tuple[str, float]]:
        """Comparisons with a constant that the first trace makes."""
        found = []
        for op in self.alignment.traces[0].ops:
            kind = op.func.name().removeprefix("aten::").split(".")[0]
            if kind in _COMPARISONS and isinstance(op.args[1], int | float):
                found.append((kind, float(op.args[1])))
        return list(dict.fromkeys(found))

    def _counts(self, candidate: Candidate) -> Iterator[tuple[GoesBy, int]]:
        """What a value may go by, and how many entries there are for each."""
        points = self.alignment.points
        sizes: dict[GoesBy, list[int]] = {"token": self.tokens}
        if len(points[0]) > 1:
            sizes["position"] = [point[-1] for point in points]
            sizes["sequence"] = [point[0] for point in points]
        for goes_by, counts in sizes.items():
            k = max(candidate.tensors[0].numel() // counts[0], 1)
            # K is the last axis, unless there is one entry for each.
            if all(
                t.numel() == n * k and (k == 1 or t.squeeze().shape[-1:] == (k,))
                for t, n in zip(candidate.tensors, counts, strict=True)
            ):
                yield goes_by, k

    def dense(self, num_experts: int) -> Iterator[tuple[Candidate, DenseLayout]]:
        """Values with entries for each token and expert."""
        for c in self.all:
            if any(t.dim() < 2 or t.is_complex() for t in c.tensors):
                continue
            whole = all(t.numel() == n * num_experts for t, n in self._each(c))
            if whole and all(t.shape[-1] == num_experts for t in c.tensors):
                yield c, "token expert"
            elif whole and all(t.shape[0] == num_experts for t in c.tensors):
                yield c, "expert token"
            elif all(
                t.dim() >= 3 and t.shape[-2] == num_experts and t[..., 0, 0].numel() == n
                for t, n in self._each(c)
            ):
                yield c, "token expert slot"

    def chosen_tokens(self, num_experts: int) -> Iterator[Candidate]:
        """Integers ``[E, C]`` below T, or ``[B, E, C]`` below S."""
        points = self.alignment.points
        for c in self.all:
            first = c.tensors[0]
            if first.dtype not in _INTEGERS or first.dim() not in (2, 3):
                continue
            grouped = first.dim() == 3
            if grouped and len(points[0]) != 2:
                continue
            limits = [point[-1] if grouped else math.prod(point) for point in points]
            if all(
                t.shape[-2] == num_experts and (not grouped or t.shape[0] == point[0])
                and int(t.min()) >= 0 and int(t.max()) < limit
                for t, point, limit in zip(c.tensors, points, limits, strict=True)
            ):  # fmt: skip
                yield c

    def selected(self, num_experts: int) -> int:
        """How many of E entries the selections of the first trace take together.

        Selections from one value, such as its largest entry and the place of that, count once.
        """
        trace = self.alignment.traces[0]
        counts: dict[int, int] = {}
        for op in trace.ops:
            name = op.func.name()
            if name not in _SELECTIONS:
                continue
            count = int(op.args[1]) if name == "aten::topk" else 1
            axis = (op.args[2:3] if name == "aten::topk" else op.args[1:2]) or (-1,)
            source = op.args[0].value
            shape = trace.values[source].tensor.shape
            if axis[0] is not None and shape[axis[0]] == num_experts:
                counts[source] = max(counts.get(source, 0), count)
        return sum(counts.values())

    def top_counts(self) -> list[int]:
        """What the top-k operators of each trace take, if it is the same for all of a trace."""
        counts = []
        for trace in self.alignment.traces:
            taken = {op.args[1] for op in trace.ops if op.func.name() == "aten::topk"}
            if len(taken) != 1:
                return []
            counts.append(taken.pop())
        return counts

    def _each(self, candidate: Candidate) -> Iterator[tuple[Tensor, int]]:
        return zip(candidate.tensors, self.tokens, strict=True)

    def _in_range(self, candidate: Candidate, limit: int) -> bool:
        return all(int(t.min()) >= -1 and 0 <= int(t.max()) <= limit for t in candidate.tensors)


def _signature(tensors: tuple[Tensor, ...]) -> bytes:
    parts = [str([t.dtype for t in tensors]).encode()]
    parts += [
        str(tuple(t.shape)).encode()
        + t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for t in tensors
    ]
    return b"".join(parts)


def choices(traces: Sequence[Trace]) -> list[int]:
    """Sizes of the axes that layers choose along or normalize over, the same in every trace."""
    found: list[set[int]] = []
    for trace in traces:
        sizes = set[int]()
        for op in trace.ops:
            if op.func.name() in _CHOICES:
                tensor = trace.values[op.args[0].value].tensor
                sizes.update(tensor.shape[-1:])
        found.append(sizes)
    return sorted(set.intersection(*found) - {0, 1}) if found else []
