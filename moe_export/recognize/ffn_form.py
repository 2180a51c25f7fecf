"""See whether a traced expert is the FFN of the contract: up, an inner function, down."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_export.ops.spec import GroupedExperts
from moe_export.recognize.bank import ExpertBank
from moe_export.recognize.expert_inner import probe_inner
from moe_export.recognize.program import Alignment, Environment, Identity, Node, Program
from moe_export.recognize.unfused import PRODUCTS, UnfusedExperts
from moe_export.sources import file_backed


@dataclass(frozen=True)
class _Product:
    """``result = x · matrix + bias``; each expert's matrix is ``[out, in]``."""

    x: Identity
    matrix: Identity
    bias: Identity | None
    result: Identity


# How gate and up columns lie in one product: a permutation from the contract's order.
_ORDERS: dict[str, Callable[[int], Tensor]] = {
    "gate, up": lambda n: torch.arange(2 * n),
    "up, gate": lambda n: torch.arange(2 * n).roll(n),
    "gate and up alternate": lambda n: torch.arange(2 * n).reshape(n, 2).T.reshape(-1),
    "up and gate alternate": lambda n: torch.arange(2 * n).reshape(n, 2).flip(1).T.reshape(-1),
}


def find_ffn(
    alignment: Alignment,
    unfused: UnfusedExperts,
    stacked: Mapping[str, Tensor],
    label: str,
    experts: Sequence[nn.Module],
) -> ExpertBank | None:
    """The bank of ``GroupedExperts`` that computes what ``unfused`` does; None if there is none.

    Args:
        alignment: Traces of one expert.
        unfused: What was traced.
        stacked: The experts' own tensors by name.
        label: Where the experts are.
        experts: The modules.
    """
    products = [p for node in unfused.program.nodes if (p := _product(node, unfused)) is not None]
    if len(products) not in (2, 3) or unfused.hidden_size != unfused.output_size:
        return None
    *ups, down = products
    if down.result != unfused.result or any(up.x != unfused.rows for up in ups):
        return None
    names = {identity: name for name, identity in unfused.stacked.items()}
    own = {identity: stacked[name] for identity, name in names.items()}
    inner_size = own[down.matrix].shape[2]
    inner = Program(alignment, [down.x], [up.result for up in ups])
    for ordered, order in _orders(ups, inner_size, own):
        base = GroupedExperts(
            num_experts=unfused.num_experts,
            hidden_size=unfused.hidden_size,
            intermediate_size=inner_size,
            gated=len(order) == 2 * inner_size,
            has_bias=any(product.bias for product in products),
            first_expert=unfused.first_expert,
        )

        def run(
            projected: Tensor, ups: Sequence[_Product] = ordered, order: Tensor = order
        ) -> Tensor:
            columns = torch.empty_like(projected)
            columns[:, order] = projected
            parts = columns.chunk(len(ups), dim=1)
            given = {up.result: part for up, part in zip(ups, parts, strict=True)}
            environment = Environment(given, (len(projected),))
            inner.run(nn.Module(), environment)
            return environment.tensors[down.x]

        try:
            fit = probe_inner(base, run)
        except (RuntimeError, KeyError, AttributeError):
            return None  # the inner function needs more than the products' results
        if fit.agrees:
            tensors = _tensors(ordered, down, own, order, fit.attributes)
            return ExpertBank(label, fit.attributes, tensors, modules=tuple(experts))
    return None


def _product(node: Node, unfused: UnfusedExperts) -> _Product | None:
    if node.func not in PRODUCTS:
        return None
    first = PRODUCTS[node.func]
    x, matrix = (a.identity for a in node.args[first:])
    if matrix not in set(unfused.stacked.values()):
        return None
    bias = node.args[0].identity if first else None
    return _Product(x, matrix, bias, node.outputs[0])


def _orders(
    ups: list[_Product], inner_size: int, own: Mapping[Identity, Tensor]
) -> Iterator[tuple[list[_Product], Tensor]]:
    """The ways in which the up products' columns may be gate and up."""
    widths = [own[up.matrix].shape[1] for up in ups]
    if widths == [inner_size]:
        yield ups, torch.arange(inner_size)
    elif widths == [inner_size, inner_size]:
        for ordered in itertools.permutations(ups):
            yield list(ordered), torch.arange(2 * inner_size)
    elif widths == [2 * inner_size]:
        for permutation in _ORDERS.values():
            yield ups, permutation(inner_size)


def _tensors(
    ups: Sequence[_Product],
    down: _Product,
    own: Mapping[Identity, Tensor],
    order: Tensor,
    attributes: GroupedExperts,
) -> dict[str, Tensor]:
    """The op's weights and biases, ``[E, out, in]``; views where nothing has to move."""

    def bias(product: _Product) -> Tensor:
        matrix = own[product.matrix]
        return matrix.new_zeros(matrix.shape[:2]) if product.bias is None else own[product.bias]

    def join(parts: list[Tensor]) -> Tensor:
        joined = parts[0] if len(parts) == 1 else file_backed.cat(parts, dim=1)
        same = torch.equal(order, torch.arange(len(order)))
        return joined if same else joined[:, order]

    tensors = {
        "up_weight": join([own[up.matrix] for up in ups]),
        "down_weight": own[down.matrix],
    }
    if attributes.has_bias:
        tensors |= {"up_bias": join([bias(up) for up in ups]), "down_bias": bias(down)}
    return tensors
