"""Banks whose experts are no modules: every way to read the layer's parameters as an FFN."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from moe_export.ops.spec import GroupedExperts
from moe_export.recognize.bank import ExpertBank
from moe_export.recognize.families import ParameterFamily, expert_counts, parameter_families
from moe_export.recognize.inner_constants import Constants
from moe_export.recognize.pointwise import BEFORE, PointwiseFunctions
from moe_export.recognize.program import Identity, Node, Program, Slot
from moe_export.recognize.recorded_products import RecordedProducts
from moe_export.recognize.trace import Trace
from moe_export.recognize.unfused import UnfusedExperts

_aten = torch.ops.aten
# Experts, with those that give their row back, for each that computes.
_MOST_COPIES = 2


@dataclass(frozen=True)
class _Reading:
    """Up rows ``[E, N, H]`` (gate first), down rows ``[E, H, I]``, and biases or None."""

    gated: bool
    up: Tensor
    down: Tensor
    up_bias: Tensor | None
    down_bias: Tensor | None
    label: str
    up_leaves: frozenset[str]
    down_leaves: frozenset[str]


def banks_of_parameters(
    module: nn.Module, trace: Trace, width: int, selected: Sequence[int] = ()
) -> Iterator[ExpertBank]:
    """Every bank that the layer's parameters may be.

    Args:
        module: The layer.
        trace: One eager run of it.
        width: Width of the layer's rows, the likeliest one for the experts' rows.
        selected: Numbers of things that the layer chooses among.
    """
    products, functions = RecordedProducts(trace), PointwiseFunctions(trace)
    constants = Constants(trace)
    for num_experts in expert_counts(module, selected):
        widths = [width, *(w for w in products.widths if w != width)]
        families = parameter_families(module, num_experts, widths)
        for rows in widths:
            products.rows_of(rows)
            for reading in _readings(families, rows, products):
                for bank in _banks(reading, num_experts, rows, constants):
                    yield bank
                    yield from _with_copies(bank, module, rows)
                unusual = _unfused_bank(reading, num_experts, rows, functions)
                if unusual is not None:
                    yield unusual


def _with_copies(bank: ExpertBank, module: nn.Module, width: int) -> Iterator[ExpertBank]:
    """The bank with experts behind it that give their row back, if parameters count them too.

    A router's matrix has a row for each of them, and so may a stacked one.
    """
    computing = bank.num_experts
    rows = {p.shape[0] for p in module.parameters() if p.dim() == 3 or p.shape[1:] == (width,)}
    for total in sorted(n for n in rows if computing < n <= _MOST_COPIES * computing):
        yield replace(bank, copies=tuple(range(computing, total)))


def _banks(
    reading: _Reading, num_experts: int, width: int, constants: Constants
) -> Iterator[ExpertBank]:
    has_bias = reading.up_bias is not None or reading.down_bias is not None
    tensors = {"up_weight": reading.up, "down_weight": reading.down}
    if has_bias:
        zeros = [reading.up.new_zeros(t.shape[:2]) for t in (reading.up, reading.down)]
        tensors["up_bias"] = zeros[0] if reading.up_bias is None else reading.up_bias
        tensors["down_bias"] = zeros[1] if reading.down_bias is None else reading.down_bias
    base = GroupedExperts(
        num_experts=num_experts,
        hidden_size=width,
        intermediate_size=reading.down.shape[2],
        gated=reading.gated,
        has_bias=has_bias,
    )
    for changes in constants.forms(gated=reading.gated):
        yield ExpertBank(reading.label, replace(base, **changes), tensors)


def _unfused_bank(
    reading: _Reading, num_experts: int, width: int, functions: PointwiseFunctions
) -> ExpertBank | None:
    """The bank of a reading whose activation is none of the contract's."""
    found = None if reading.gated else functions.between(reading.up_leaves, reading.down_leaves)
    if found is None:
        return None
    nodes, activated = found
    rows, result = ("experts", "rows"), ("experts", "result")
    tensors = {"up_weight": reading.up, "down_weight": reading.down}
    if reading.up_bias is not None:
        tensors["up_bias"] = reading.up_bias
    if reading.down_bias is not None:
        tensors["down_bias"] = reading.down_bias
    stacked = {name: ("experts", name) for name in tensors}

    def product(name: str, x: Identity, made: Identity) -> Node:
        matrix, bias = Slot(stacked[f"{name}_weight"]), stacked.get(f"{name}_bias")
        if bias is None:
            return Node(_aten.mm.default, [Slot(x), matrix], {}, (made,))
        return Node(_aten.addmm.default, [Slot(bias), Slot(x), matrix], {}, (made,))

    chain = [product("up", rows, BEFORE), *nodes, product("down", activated, result)]
    form = UnfusedExperts(
        num_experts=num_experts,
        hidden_size=width,
        output_size=width,
        program=Program.of_nodes(chain),
        rows=rows,
        result=result,
        stacked=stacked,
    )
    return ExpertBank(reading.label, form, tensors)


def _readings(
    families: Sequence[ParameterFamily], width: int, products: RecordedProducts
) -> Iterator[_Reading]:
    matrices = [f for f in families if f.is_matrix]
    vectors = [f for f in families if not f.is_matrix]
    ups = [
        (family, up, biases)
        for family, up in _oriented(matrices, columns=width)
        if (biases := products.biases(up, vectors))
    ]
    for family, up, biases in ups:
        for down_family, down in _oriented(matrices, rows=width):
            inner = down.shape[2]
            if down_family is family:
                continue
            down_biases = [None, *(v for v in vectors if v.tensor.shape[1] == width)]
            if up.shape[1] == inner:
                chosen = [_Part([family], [up], [(b,) for b in biases])]
                chosen += [
                    _Part([family, other], [up, up2], list(itertools.product(biases, biases2)))
                    for other, up2, biases2 in ups
                    if other not in (family, down_family) and up2.shape[1] == inner
                ]
                for part in chosen:
                    yield from part.read(down_family, down, down_biases, None)
            elif up.shape[1] == 2 * inner:
                part = _Part([family], [up], [(b,) for b in biases], gated=True)
                for order in _fused_orders(inner):
                    yield from part.read(down_family, down, down_biases, order)


@dataclass(frozen=True)
class _Part:
    """The up side of a reading: one or two matrices, with the choices for their biases."""

    families: Sequence[ParameterFamily]
    matrices: Sequence[Tensor]
    biases: Sequence[tuple[ParameterFamily | None, ...]]
    gated: bool = False

    def read(
        self,
        down_family: ParameterFamily,
        down: Tensor,
        down_biases: Sequence[ParameterFamily | None],
        order: Tensor | None,
    ) -> Iterator[_Reading]:
        """The readings with a down projection, with the most biases first."""
        label = ", ".join(f.name for f in (*self.families, down_family))
        choices = itertools.product(self.biases, down_biases)
        for up_biases, down_bias in sorted(choices, key=lambda c: (*c[0], c[1]).count(None)):
            used = [id(v) for v in (*up_biases, down_bias) if v is not None]
            if len(set(used)) < len(used):
                continue
            up = _join(self.matrices)
            vectors = [
                m.new_zeros(m.shape[:2]) if v is None else v.tensor
                for v, m in zip(up_biases, self.matrices, strict=True)
            ]
            bias = _join(vectors) if any(v is not None for v in up_biases) else None
            if order is not None:
                up, bias = up[:, order], None if bias is None else bias[:, order]
            gated = self.gated or len(self.matrices) == 2
            yield _Reading(
                gated=gated,
                up=up,
                down=down,
                up_bias=bias,
                down_bias=None if down_bias is None else down_bias.tensor,
                label=label,
                up_leaves=frozenset().union(*(f.leaves for f in self.families)),
                down_leaves=down_family.leaves,
            )


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _fused_orders(inner: int) -> Iterator[Tensor | None]:
    """Where the contract's rows, gate before up, are in a fused matrix; None: as they are."""
    pairs = torch.arange(2 * inner).reshape(inner, 2)
    yield from (None, torch.arange(2 * inner).roll(inner), pairs.T.reshape(-1))
    yield pairs.flip(1).T.reshape(-1)


def _oriented(
    families: Sequence[ParameterFamily], rows: int | None = None, columns: int | None = None
) -> Iterator[tuple[ParameterFamily, Tensor]]:
    """Matrices of a shape ``[E, rows, columns]``, as they are or transposed."""
    for family in families:
        for tensor in (family.tensor, family.tensor.transpose(1, 2)):
            if rows in (None, tensor.shape[1]) and columns in (None, tensor.shape[2]):
                yield family, tensor
