"""Experts that are not the contract's FFN: one is traced, its parameters are stacked.

Products with an expert's matrix become ``GroupedMatMul`` on rows sorted by expert; an expert's
vectors are gathered by row; everything between stays the standard operators that eager ran.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from moe_export.errors import UnsupportedModelError
from moe_export.ops import torch_ops
from moe_export.ops.spec_rows import ExpertCombine, ExpertDispatch, GroupedMatMul
from moe_export.recognize.program import (
    Environment,
    Identity,
    Node,
    Program,
    Slot,
    apply_operator,
)

_aten = torch.ops.aten
PRODUCTS = {_aten.mm.default: 0, _aten.addmm.default: 1}


_Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class _PerExpert:
    """A tensor that each expert has its own of.

    Attributes:
        stacked: ``[E, ...]``, or one expert's ``[1, ...]``.
        rows: ``[M]`` expert of each row; None for a single expert.
    """

    def __init__(self, stacked: Tensor, rows: Tensor | None) -> None:
        self.stacked, self.rows = stacked, rows

    def by_row(self, rank: int) -> Tensor:
        """The tensors of each row, to be broadcast with rows of ``rank`` axes."""
        own = (
            self.stacked[0][None] if self.rows is None else self.stacked.index_select(0, self.rows)
        )
        own_rank = own.dim() - 1
        if own_rank >= rank and own.shape[1] == 1:
            return own.squeeze(1)  # an expert's own leading axis of 1 stands for its rows
        shape = [own.shape[0], *[1] * (rank - 1 - own_rank), *own.shape[1:]]
        return own.reshape(shape)


@dataclass(frozen=True)
class UnfusedExperts:
    """What E alike experts compute, as the operators of one of them.

    Attributes:
        num_experts: E.
        hidden_size: Width of the rows that go in.
        output_size: Width of the rows that come out.
        program: From ``rows`` to ``result``.
        rows: Identity of the expert's input.
        result: Identity of its result.
        first_expert: Id of the first of them.
        stacked: Identities of what each expert has its own of, by name in the layer; matrices
            that rows are multiplied with are stacked as ``[E, out, in]``.
    """

    num_experts: int
    hidden_size: int
    output_size: int
    program: Program = field(repr=False)
    rows: Identity
    result: Identity
    stacked: Mapping[str, Identity]
    first_expert: int = 0

    def to_onnx(self) -> dict[str, Any]:
        """Facts for people and for the manifest."""
        names = [str(node.func).removeprefix("aten.").split(".")[0] for node in self.program.nodes]
        return {
            "num_experts": self.num_experts,
            "hidden_size": self.hidden_size,
            "output_size": self.output_size,
            "operators": ", ".join(dict.fromkeys(n for n in names if n not in ("t", "view"))),
        }

    def lower(
        self, rows: Tensor, ids: Tensor, weights: Tensor, tensors: Mapping[str, Tensor], path: str
    ) -> Tensor:
        """The weighted sum ``[T, N]`` of the experts' results through the ops of the contract."""
        dispatch = ExpertDispatch(
            num_experts=self.num_experts,
            hidden_size=self.hidden_size,
            first_expert=self.first_expert,
        )
        combine = ExpertCombine(hidden_size=self.output_size)
        by_expert, row_map, ends, experts = torch_ops.expert_dispatch(
            rows, ids, dispatch, path=path
        )

        def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            attributes = GroupedMatMul(
                num_experts=self.num_experts,
                in_features=weight.shape[2],
                out_features=weight.shape[1],
                has_bias=bias is not None,
            )
            return torch_ops.grouped_matmul(x, weight, ends, attributes, bias, path=path)

        made = self._run(by_expert, tensors, experts, product)
        return torch_ops.expert_combine(made, row_map, weights, combine, path=path)

    def run(self, tensors: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """One expert on ``rows [N, H]``; ``tensors`` are its own."""

        def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.linear(x, weight[0], None if bias is None else bias[0])

        return self._run(rows, {n: t[None] for n, t in tensors.items()}, None, product)

    def _run(
        self,
        rows: Tensor,
        tensors: Mapping[str, Tensor],
        experts: Tensor | None,
        product: _Multiply,
    ) -> Tensor:
        own: dict[Identity, Any] = {
            identity: _PerExpert(tensors[name], experts) for name, identity in self.stacked.items()
        }
        environment = Environment({self.rows: rows, **own}, (rows.shape[0],))

        def apply(func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            return _apply(func, args, kwargs, product)

        self.program.run(nn.Module(), environment, apply)
        return environment.tensors[self.result]


def _apply(func: Any, args: list[Any], kwargs: dict[str, Any], product: _Multiply) -> Any:  # noqa: ANN401
    if not any(isinstance(a, _PerExpert) for a in (*args, *kwargs.values())):
        return apply_operator(func, args, kwargs)
    if func in PRODUCTS:
        bias = args[0] if PRODUCTS[func] else None
        x, matrix = args[PRODUCTS[func] :]
        return product(x, matrix.stacked, None if bias is None else bias.stacked)
    rank = next(a.dim() for a in args if isinstance(a, Tensor))
    if func is _aten.native_layer_norm.default:
        x, shape, weight, bias, eps = args
        made = F.layer_norm(x, shape, None, None, eps)
        made = made if weight is None else made * weight.by_row(rank)
        made = made if bias is None else made + bias.by_row(rank)
        return made, None, None  # its mean and deviation are for training
    rowwise = [a.by_row(rank) if isinstance(a, _PerExpert) else a for a in args]
    return func(*rowwise, **kwargs)


def matrices(nodes: Sequence[Node], own: set[Identity]) -> set[Identity]:
    """Which of an expert's own tensors rows are multiplied with.

    Raises:
        UnsupportedModelError: names the operator.
    """
    factors, others = set[Identity](), set[Identity]()
    for node in nodes:
        uses = [isinstance(a, Slot) and a.identity in own for a in node.args]
        if not any(uses):
            continue
        if node.func in PRODUCTS and len(node.args) == len(uses):
            first = PRODUCTS[node.func]
            fits = uses[first:] == [False, True] and all(uses[:first]) and not node.kwargs
            factors.add(node.args[first + 1].identity)
            others.update(a.identity for a in node.args[:first])
        elif node.func is _aten.native_layer_norm.default:
            fits = not any(uses[:2])
        else:
            fits = torch.Tag.pointwise in node.func.tags and not all(uses)
        if node.func not in PRODUCTS:
            others.update(a.identity for a, own_use in zip(node.args, uses, strict=True) if own_use)
        if not fits or factors & others:
            raise UnsupportedModelError(
                f"{node.func.name()} uses an expert's own tensor in a way that has no grouped form"
            )
    return factors
