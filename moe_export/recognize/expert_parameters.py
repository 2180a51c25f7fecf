"""Banks whose experts are no modules: every way to read the layer's parameters as an FFN."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from moe_export.ops.spec import Activation, GroupedExperts
from moe_export.recognize.bank import ExpertBank
from moe_export.recognize.families import ParameterFamily, expert_counts, parameter_families

_ALPHAS = (1.0, 1.702)


@dataclass(frozen=True)
class _Reading:
    """Up rows ``[E, N, H]`` (gate first), down rows ``[E, H, I]``, and biases or None."""

    gated: bool
    up: Tensor
    down: Tensor
    up_bias: Tensor | None
    down_bias: Tensor | None
    label: str


def banks_of_parameters(module: nn.Module, widths: Sequence[int]) -> Iterator[ExpertBank]:
    """Every bank that the layer's parameters may be.

    Args:
        module: The layer.
        widths: Widths that the experts' rows may have, the likeliest first.
    """
    for num_experts in expert_counts(module):
        families = parameter_families(module, num_experts, widths)
        for width in widths:
            for reading in _readings(families, width):
                yield from _banks(reading, num_experts, width)


def _banks(reading: _Reading, num_experts: int, width: int) -> Iterator[ExpertBank]:
    has_bias = reading.up_bias is not None or reading.down_bias is not None
    tensors = {"up_weight": reading.up, "down_weight": reading.down}
    if has_bias:
        zeros = [reading.up.new_zeros(t.shape[:2]) for t in (reading.up, reading.down)]
        tensors["up_bias"] = zeros[0] if reading.up_bias is None else reading.up_bias
        tensors["down_bias"] = zeros[1] if reading.down_bias is None else reading.down_bias
    for activation in get_args(Activation):
        for alpha in _ALPHAS if activation == "silu" else (1.0,):
            form = GroupedExperts(
                num_experts=num_experts,
                hidden_size=width,
                intermediate_size=reading.down.shape[2],
                gated=reading.gated,
                activation=activation,
                alpha=alpha,
                has_bias=has_bias,
            )
            yield ExpertBank(reading.label, form, tensors)


def _readings(families: Sequence[ParameterFamily], width: int) -> Iterator[_Reading]:
    matrices = [f for f in families if f.is_matrix]
    vectors = [f for f in families if not f.is_matrix]
    for down_family, down in _oriented(matrices, rows=width):
        inner = down.shape[2]
        others = [m for m in matrices if m is not down_family]
        for up_family, up in _oriented(others, columns=width):
            rest = [m for m in others if m is not up_family]
            if up.shape[1] == inner:
                yield from _with_biases(vectors, [up_family], [up], down_family, down, gated=False)
                for second, other in _oriented(rest, rows=inner, columns=width):
                    yield from _with_biases(
                        vectors, [up_family, second], [up, other], down_family, down, gated=True
                    )
            elif up.shape[1] == 2 * inner:
                for order in _fused_orders(inner):
                    yield from _with_biases(
                        vectors, [up_family], [up], down_family, down, gated=True, order=order
                    )


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


def _with_biases(
    vectors: Sequence[ParameterFamily],
    up_families: Sequence[ParameterFamily],
    ups: Sequence[Tensor],
    down_family: ParameterFamily,
    down: Tensor,
    *,
    gated: bool,
    order: Tensor | None = None,
) -> Iterator[_Reading]:
    """The reading with every choice of biases, the most biases first."""
    sizes = [up.shape[1] for up in ups] + [down.shape[1]]
    fitting = [[v for v in vectors if v.tensor.shape[1] == size] for size in sizes]
    choices = [
        c
        for c in itertools.product(*([*fits, None] for fits in fitting))
        if len(set(map(id, filter(None, c)))) == sum(v is not None for v in c)
    ]
    for chosen in sorted(choices, key=lambda c: sum(v is None for v in c)):
        biases = [
            tensor.new_zeros(tensor.shape[:2]) if vector is None else vector.tensor
            for vector, tensor in zip(chosen, (*ups, down), strict=True)
        ]
        has_up_bias = any(vector is not None for vector in chosen[:-1])
        up, up_bias = (
            (torch.cat(list(parts), dim=1) if len(ups) > 1 else parts[0])
            for parts in (ups, biases[:-1])
        )
        if order is not None:
            up, up_bias = up[:, order], up_bias[:, order]
        yield _Reading(
            gated,
            up,
            down,
            up_bias if has_up_bias else None,
            None if chosen[-1] is None else biases[-1],
            ", ".join(f.name for f in (*up_families, down_family)),
        )
