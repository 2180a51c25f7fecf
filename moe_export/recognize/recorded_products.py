"""Which matrices a layer multiplies its rows with: their products are among its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_export.recognize.families import ParameterFamily
from moe_export.recognize.trace import Trace

# Rows of each value, and columns of a product, that are looked for.
_ROWS, _COLUMNS = 5, 4
_TOLERANCE = 2e-6
# Share of a value's rows whose products must be there; tokens may be dropped.
_SHARE = 0.5


class RecordedNumbers:
    """All floating-point numbers of one eager run of a layer.

    Args:
        trace: The run.
    """

    def __init__(self, trace: Trace) -> None:
        floats = [v.tensor.detach() for v in trace.values if v.tensor.is_floating_point()]
        self._numbers = torch.cat([t.reshape(-1) for t in floats]).double().unique()

    def contain(self, wanted: Tensor) -> Tensor:
        """Which of some numbers are there, up to rounding: bool, in the shape of ``wanted``."""
        wanted = wanted.double().contiguous()
        index = torch.searchsorted(self._numbers, wanted)
        right = self._numbers[index.clamp(max=len(self._numbers) - 1)]
        left = self._numbers[(index - 1).clamp(min=0)]
        distance = torch.minimum((right - wanted).abs(), (left - wanted).abs())
        return distance <= _TOLERANCE * wanted.abs().max()


class RecordedProducts:
    """The numbers of one eager run of a layer, to look products up in.

    Args:
        trace: The run.
    """

    def __init__(self, trace: Trace) -> None:
        made = [v for v in trace.values if v.tensor.is_floating_point() and v.tensor.dim() >= 2]
        self._by_width: dict[int, list[Tensor]] = {}
        for value in made:
            if value.leaf is None or value.leaf[0] == "input":
                rows = value.tensor.detach().reshape(-1, value.tensor.shape[-1])
                self._by_width.setdefault(rows.shape[1], []).append(_spread(rows))
        self._numbers = RecordedNumbers(trace)
        self._rows: list[Tensor] = []

    @property
    def widths(self) -> list[int]:
        """Widths of the layer's values, the widest first."""
        return sorted(self._by_width, reverse=True)

    def rows_of(self, width: int) -> None:
        """Look for products with rows of this width from now on."""
        distinct = {r.numpy().tobytes(): r for r in self._by_width.get(width, []) if len(r)}
        self._rows = list(distinct.values())

    def biases(
        self, matrix: Tensor, vectors: Sequence[ParameterFamily]
    ) -> list[ParameterFamily | None]:
        """Biases ``[E, N]`` that the products with ``matrix [E, N, width]`` may have.

        Returns:
            None stands for no bias; nothing if the layer does not multiply with the matrix.
        """
        fitting = [v for v in vectors if v.tensor.shape[1] == matrix.shape[1]]
        if self._are_there(matrix, None):
            return [None, *fitting]  # a bias may have been added later
        return [v for v in fitting if self._are_there(matrix, v.tensor)]

    def _are_there(self, matrix: Tensor, bias: Tensor | None) -> bool:
        some = matrix[:, :_COLUMNS].double()
        for rows in self._rows:
            products = torch.einsum("rh,enh->ren", rows.double(), some)
            if bias is not None:
                products = products + bias[:, :_COLUMNS]
            there = self._numbers.contain(products).all(2).any(1)
            if float(there.double().mean()) >= _SHARE:
                return True
        return False


def _spread(rows: Tensor) -> Tensor:
    """A few rows, from the first to the last, that are not zero."""
    rows = rows[rows.abs().amax(1) > 0]
    chosen = torch.linspace(0, max(len(rows) - 1, 0), _ROWS).long().unique()
    return rows[chosen] if len(rows) else rows
