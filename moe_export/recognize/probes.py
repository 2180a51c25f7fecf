"""Inputs on which a layer is traced and proved: other shapes and values than the example's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.layer_call import LayerCall
from moe_export.recognize.sizes import Point

# Sizes of the leading axes, by how many there are. No size divides another.
_POINTS: dict[int, tuple[Point, ...]] = {
    1: ((13,), (24,), (37,)),
    2: ((2, 7), (3, 8), (5, 11)),
    3: ((2, 3, 5), (3, 4, 2), (2, 5, 7)),
}
_CROWDS: dict[int, tuple[Point, ...]] = {
    1: ((31,), (47,)),
    2: ((2, 15), (3, 16)),
    3: ((2, 4, 4), (3, 4, 4)),
}
_MORE: dict[int, tuple[Point, ...]] = {
    1: ((2,), (3,), (5,), (9,), (64,), (99,), (201,), (256,), (333,), (600,)),
    2: (
        (2, 2),
        (2, 3),
        (3, 4),
        (4, 5),
        (4, 16),
        (3, 33),
        (2, 64),
        (4, 64),
        (2, 303),
    ),
    3: (
        (2, 2, 2),
        (2, 2, 3),
        (2, 8, 4),
        (3, 3, 11),
        (2, 8, 8),
        (3, 2, 67),
        (4, 8, 8),
    ),
}
# Axes of size 1 can lead eager to other operators, so that they have a turn of their own.
_UNITS: dict[int, tuple[Point, ...]] = {
    1: ((2,), (3,)),
    2: ((1, 2), (1, 3)),
    3: ((1, 1, 2), (1, 1, 3)),
}
_SEQUENCES, _LONG = 128, 1999
_LARGE = 20.0
_CROWDED = 1e-3


class Probes:
    """Makes the tensors of a layer's call at any shape.

    Args:
        call: How the layer is called; its tensors give the spread and the range of values.
        ranges: For each tensor of integers, how many values it can take.

    Raises:
        UnsupportedModelError: the tokens have an unknown number of axes.
    """

    def __init__(self, call: LayerCall, ranges: Sequence[int | None] | None = None) -> None:
        self.call = call
        self._shape: Point = call.point(call.x)
        if len(self._shape) not in _POINTS:
            raise UnsupportedModelError(
                f"{call.where} is called with {list(call.x.shape)}; [T, H], [B, S, H] or "
                "[B, h, w, H] is expected"
            )
        self._ranges = list(ranges or [None] * len(call.tensors))
        self._fixed = self._fixed_axes()

    def points(self) -> list[Point]:
        """Shapes to trace at."""
        return self._distinct(_POINTS[len(self._shape)])

    def more_points(self) -> list[Point]:
        """Further shapes, up to several hundred tokens."""
        return self._distinct(_MORE[len(self._shape)])

    def few_points(self) -> list[Point]:
        """Shapes of two and three tokens."""
        return self._distinct(_UNITS[len(self._shape)])

    def crowd_points(self) -> list[Point]:
        """Shapes to trace crowds of tokens at."""
        return self._distinct(_CROWDS[len(self._shape)])

    def spread_out(self, count: int) -> Point:
        """A shape of about ``count`` tokens."""
        axes = len(self._shape)
        leading = 1 if count == 1 else 2
        last = max(1, -(-count // leading ** (axes - 1)))
        return self._fix((leading,) * (axes - 1) + (last,))

    def filled(self, point: Point) -> Point:
        """A shape whose leading axes are given; those after it are of size 1."""
        return self._fix((*point, *(1,) * (len(self._shape) - len(point))))

    def odd_points(self) -> list[Point]:
        """Many short sequences, each of which may be routed as one; single steps; long ones."""
        axes = len(self._shape) - 1
        long = (1,) * axes + (_LONG,)
        return self._distinct(((_SEQUENCES, *[2] * axes), (5, *[1] * axes), long))

    def with_zero_rows(self, point: Point, seed: int) -> list[Tensor]:
        """Random tensors at a shape, in which every third token is zero and others are large."""
        made = self.make(point, seed)
        rows = self.call.rows(made[self.call.main]).clone()
        rows[::3] = 0
        rows[1::3] *= _LARGE
        made[self.call.main] = self.call.place(rows, point)
        return made

    def make(
        self, point: Point, seed: int = 0, row: Tensor | None = None, scale: float = 1.0
    ) -> list[Tensor]:
        """Random tensors at a shape; with ``row``, all tokens are nearly that row.

        Args:
            point: Sizes of the leading axes.
            seed: Seeds the values.
            row: ``[H]``.
            scale: Factor on the tokens.
        """
        generator = torch.Generator().manual_seed(1000 * seed + math.prod(point))
        made = [
            self._tensor(n, t, point, generator, crowded=row is not None)
            for n, t in enumerate(self.call.tensors)
        ]
        made[self.call.main] = made[self.call.main] * scale
        if row is not None:
            spread = _spread(self.call.x) * _CROWDED
            shape = (*point, len(row))
            rows = row + torch.randn(shape, generator=generator) * spread
            made[self.call.main] = self.call.place(rows, point)
        return made

    def with_rows(self, rows: Tensor) -> list[Tensor]:
        """Tensors whose tokens are ``rows [N, H]``."""
        point = self._fix((1,) * (len(self._shape) - 1) + (len(rows),))
        made = self.make(point, seed=5)
        if math.prod(point) == len(rows):
            made[self.call.main] = self.call.place(rows, point)
        return made

    def _tensor(
        self, number: int, like: Tensor, point: Point, generator: torch.Generator, *, crowded: bool
    ) -> Tensor:
        shape = [self._size(axis, size, point) for axis, size in enumerate(like.shape)]
        if number == self.call.main:
            rows = torch.randn(*point, self.call.width, generator=generator) * _spread(like)
            return self.call.place(rows, point)
        if like.is_floating_point():
            if len(values := like.unique()) == 2:  # a mask that is added: its two values only
                chosen: Tensor = values[torch.randint(2, shape, generator=generator)]
                return chosen
            return torch.randn(shape, generator=generator) * _spread(like)
        if like.dtype == torch.bool:
            # A mask that the example leaves open must show what it does.
            share = min(max(float(like.float().mean()), 0.3), 0.7)
            return torch.rand(shape, generator=generator) < share
        high = self._ranges[number] or (int(like.max()) + 1 if like.numel() else 1)
        if crowded:
            return torch.full(shape, high // 2, dtype=like.dtype)
        return torch.randint(0, max(high, 1), shape, generator=generator, dtype=like.dtype)

    def _size(self, axis: int, size: int, point: Point) -> int:
        """A tensor's axis follows the token axis of its size, the one at its place first."""
        places = [axis, *range(len(self._shape))]
        for place in places:
            if place < len(self._shape) and self._shape[place] == size:
                return int(point[place])
        tokens: int = math.prod(self._shape)
        if size != tokens:
            return size
        count: int = math.prod(point)
        return count

    def _fixed_axes(self) -> set[int]:
        """Axes whose size the layer cannot do without."""
        fixed = set[int]()
        for axis in range(len(self._shape)):
            for size in (3, 2 * self._shape[axis] + 1):
                point = tuple(size if a == axis else s for a, s in enumerate(self._shape))
                try:
                    made = [
                        self._tensor(n, t, point, torch.Generator(), crowded=False)
                        for n, t in enumerate(self.call.tensors)
                    ]
                    self.call.run(made)
                except Exception:  # the layer's own code says no in its own way
                    fixed.add(axis)
                    break
        return fixed

    def _fix(self, point: Point) -> Point:
        return tuple(
            self._shape[axis] if axis in self._fixed else size for axis, size in enumerate(point)
        )

    def _distinct(self, points: Sequence[Point]) -> list[Point]:
        return list(dict.fromkeys(self._fix(point) for point in points))


def _spread(tensor: Tensor) -> float:
    return float(tensor.std(correction=0)) or 1.0
