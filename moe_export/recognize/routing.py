"""Ways in which a layer's values say which experts a token goes to, and with what weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from moe_export.recognize.program import Identity
from moe_export.recognize.sizes import Size

# Axes of a value with an entry for each token and expert: [.., E], [E, ..] or [.., E, C].
DenseLayout = Literal["token expert", "expert token", "token expert slot"]
# What has ids of its own: each token, each place on the last axis, or each on the first.
GoesBy = Literal["token", "position", "sequence"]


class Routing(Protocol):
    """From values of a layer to expert ids and weights."""

    @property
    def values(self) -> tuple[Identity, ...]:
        """The values that ``read`` takes."""

    def read(
        self, values: Sequence[Tensor], point: Sequence[Any], rows: int, num_experts: int
    ) -> tuple[Tensor, Tensor]:
        """Ids and weights ``[T, K]``; an id of E adds nothing.

        Args:
            values: Tensors of ``self.values``.
            point: Sizes of the tokens' axes.
            rows: How many rows the experts get, T.
            num_experts: E.
        """


@dataclass(frozen=True)
class PairRouting:
    """Expert ids beside their weights, K of each for a token.

    Attributes:
        ids: The ids' value.
        weights: The weights' value: one for each id, or dense ``[T, E]`` to be read at the ids;
            None where every weight is 1.
        dense: Whether ``weights`` is dense.
        kept: A value, one for each id or each token, that is zero where the id does not count.
        kept_by_slot: Whether ``kept`` lists all first choices, then all second ones.
        goes_by: What ids and weights go by: a token, a position or a sequence.
        weights_by: The same of the weights.
        factor: A constant on the weights that eager applies among the experts.
        skips: Whether a weight of zero stands for an expert that is not run.
    """

    ids: Identity
    weights: Identity | None
    dense: bool = False
    kept: Identity | None = None
    kept_by_slot: bool = False
    goes_by: GoesBy = "token"
    weights_by: GoesBy = "token"
    factor: float = 1.0
    skips: bool = False

    @property
    def values(self) -> tuple[Identity, ...]:
        """Ids, weights, and what counts."""
        return tuple(v for v in (self.ids, self.weights, self.kept) if v is not None)

    def read(
        self, values: Sequence[Tensor], point: Sequence[Any], rows: int, num_experts: int
    ) -> tuple[Tensor, Tensor]:
        """See ``Routing``."""
        given = dict(zip(self.values, values, strict=True))
        ids = _by_token(given[self.ids].long(), self.goes_by, point, rows)
        if self.weights is None:
            weights = torch.ones(ids.shape)
        elif self.dense:
            valid = ids.clamp(0, num_experts - 1)
            weights = given[self.weights].reshape(rows, num_experts).gather(1, valid)
        else:
            weights = _by_token(given[self.weights], self.weights_by, point, rows)
        weights = weights.float()
        if self.factor != 1.0:
            weights = weights * self.factor
        if self.skips:
            ids = torch.where(weights != 0, ids, num_experts)
        if self.kept is not None:
            kept = given[self.kept]
            kept = kept.reshape(-1, rows).T if self.kept_by_slot else kept.reshape(rows, -1)
            ids = torch.where(kept != 0, ids, num_experts)
        return ids, weights


@dataclass(frozen=True)
class DenseRouting:
    """Weights of every token for every expert; those that are zero are not run.

    Attributes:
        weights: The weights' value.
        layout: Its axes.
        mask: A value of the same kind that is zero where an expert is not run; None without.
        mask_layout: Its axes.
        above: A comparison and its bound: weights that do not pass are zero.
        top_k: Most experts that a token can have; 0 for all.
        factor: See ``PairRouting``.
    """

    weights: Identity
    layout: DenseLayout
    mask: Identity | None = None
    mask_layout: DenseLayout = "token expert"
    above: tuple[str, float] | None = None
    top_k: int = 0
    factor: float = 1.0

    @property
    def values(self) -> tuple[Identity, ...]:
        """The weights and the mask."""
        return (self.weights,) if self.mask is None else (self.weights, self.mask)

    def read(
        self, values: Sequence[Tensor], point: Sequence[Any], rows: int, num_experts: int
    ) -> tuple[Tensor, Tensor]:
        """See ``Routing``."""
        del point
        dense = read_dense(values[0], self.layout, rows, num_experts)
        if self.mask is not None:
            dense = dense * read_dense(values[1], self.mask_layout, rows, num_experts)
        if self.above is not None:
            passes = getattr(torch, self.above[0])(dense, self.above[1])
            dense = torch.where(passes, dense, 0.0)
        return _nonzero(dense * self.factor, self.top_k or num_experts)


@dataclass(frozen=True)
class CapacityRouting:
    """A pair of which an expert takes the first C tokens that chose it.

    Attributes:
        pair: What the tokens choose.
        capacity: C.
        order: Tokens in the order in which they are taken; None for their own.
        by_slot: Whether all first choices come before all second ones.
        factor: See ``PairRouting``.
    """

    pair: PairRouting
    capacity: Size | int
    order: Identity | None = None
    by_slot: bool = False
    factor: float = 1.0

    @property
    def values(self) -> tuple[Identity, ...]:
        """The pair's, and the order."""
        return self.pair.values if self.order is None else (*self.pair.values, self.order)

    def read(
        self, values: Sequence[Tensor], point: Sequence[Any], rows: int, num_experts: int
    ) -> tuple[Tensor, Tensor]:
        """See ``Routing``."""
        pair_values = values if self.order is None else values[:-1]
        order = None if self.order is None else values[-1].reshape(rows)
        ids, weights = self.pair.read(pair_values, point, rows, num_experts)
        count = self.capacity.at(point) if isinstance(self.capacity, Size) else self.capacity
        position = places(ids, order, num_experts, by_slot=self.by_slot)
        return torch.where(position < count, ids, num_experts), weights


def places(ids: Tensor, order: Tensor | None, num_experts: int, *, by_slot: bool) -> Tensor:
    """How many earlier choices of its expert each choice has, ``[T, K]``.

    Args:
        ids: ``[T, K]``.
        order: ``[T]``, the tokens in the order they count; None for their own.
        num_experts: E.
        by_slot: Whether all first choices come before all second ones.
    """
    tokens, k = ids.shape
    ordered = ids if order is None else ids[order]
    flat = ordered.T.reshape(-1) if by_slot else ordered.reshape(-1)
    chosen = (flat[:, None] == torch.arange(num_experts)).long()
    earlier = ((chosen.cumsum(0) - chosen) * chosen).sum(1)
    position = earlier.reshape(k, tokens).T if by_slot else earlier.reshape(tokens, k)
    if order is None:
        return position
    return torch.zeros_like(position).scatter(0, order[:, None].expand(tokens, k), position)


@dataclass(frozen=True)
class ExpertChoiceRouting:
    """Experts that choose tokens: ``[E, C]`` token ids, or ``[B, E, C]`` in groups of tokens.

    Attributes:
        tokens: The chosen tokens' value.
        weights: Their weights' value; None where every weight is 1.
        factor: See ``PairRouting``.
    """

    tokens: Identity
    weights: Identity | None
    factor: float = 1.0

    @property
    def values(self) -> tuple[Identity, ...]:
        """The tokens and their weights."""
        return (self.tokens,) if self.weights is None else (self.tokens, self.weights)

    def read(
        self, values: Sequence[Tensor], point: Sequence[Any], rows: int, num_experts: int
    ) -> tuple[Tensor, Tensor]:
        """See ``Routing``."""
        tokens = values[0].long()
        weights = torch.ones(tokens.shape) if self.weights is None else values[1].float()
        if tokens.dim() == 2:
            dense = torch.zeros(num_experts, rows).scatter_add(1, tokens, weights).T
        else:
            empty = torch.zeros(point[0], num_experts, point[1])
            dense = empty.scatter_add(2, tokens, weights).transpose(1, 2)
        return _nonzero(dense.reshape(rows, num_experts) * self.factor, num_experts)


@dataclass(frozen=True)
class TopTokensRouting:
    """Experts that choose their best tokens by dense scores, which are also the weights.

    Attributes:
        scores: The scores' value.
        layout: Its axes.
        count: How many tokens an expert takes.
        factor: See ``PairRouting``.
    """

    scores: Identity
    layout: DenseLayout
    count: Size | int
    factor: float = 1.0

    @property
    def values(self) -> tuple[Identity, ...]:
        """The scores."""
        return (self.scores,)

    def read(
        self, values: Sequence[Tensor], point: Sequence[Any], rows: int, num_experts: int
    ) -> tuple[Tensor, Tensor]:
        """See ``Routing``."""
        scores = read_dense(values[0], self.layout, rows, num_experts).T
        count = self.count.at(point) if isinstance(self.count, Size) else self.count
        best, tokens = scores.topk(count, dim=-1)
        dense = torch.zeros_like(scores).scatter(1, tokens, best).T
        return _nonzero(dense * self.factor, num_experts)


@dataclass(frozen=True)
class SlotRouting:
    """Experts by position, with weight 1: the first rows of an axis go to expert 0, and so on.

    Attributes:
        axis: Axis of the experts' slots in the value that holds the rows.
    """

    axis: int
    values: tuple[Identity, ...] = ()

    def read(
        self, values: Sequence[Tensor], point: Sequence[Any], rows: int, num_experts: int
    ) -> tuple[Tensor, Tensor]:
        """See ``Routing``; the rows are sorted by expert."""
        del values, point
        ids = torch.arange(num_experts)[:, None].expand(num_experts, rows // num_experts)
        return ids.reshape(rows, 1), torch.ones(rows, 1)


def _by_token(value: Tensor, goes_by: GoesBy, point: Sequence[Any], rows: int) -> Tensor:
    """``[T, K]`` of a value that goes by token, position or sequence."""
    if goes_by == "position":
        own = value.reshape(point[-1], -1)
        value = own.expand(*point[:-1], *own.shape)
    elif goes_by == "sequence":
        own = value.reshape(point[0], *[1] * (len(point) - 1), -1)
        value = own.expand(*point, own.shape[-1])
    return value.reshape(rows, -1)


def read_dense(value: Tensor, layout: DenseLayout, rows: int, num_experts: int) -> Tensor:
    """The dense weights ``[T, E]`` float32 of a value."""
    if layout == "expert token":
        return value.reshape(num_experts, rows).T.float()
    if layout == "token expert slot":
        return value.reshape(rows, num_experts, -1).float().sum(-1)
    return value.reshape(rows, num_experts).float()


def _nonzero(dense: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Ids and weights ``[T, top_k]`` of the largest weights; the id of a zero weight is E."""
    tokens, num_experts = dense.shape
    if top_k < num_experts:
        ids = dense.abs().topk(top_k, dim=-1).indices
        weights = dense.gather(1, ids)
    else:
        ids, weights = torch.arange(num_experts).expand(tokens, num_experts), dense
    return torch.where(weights != 0, ids, num_experts), weights


def to_dense(ids: Tensor, weights: Tensor, num_experts: int) -> Tensor:
    """``[T, E]`` float64 of ids and weights ``[T, K]``; ids out of range add nothing."""
    valid = (ids >= 0) & (ids < num_experts)
    dense = torch.zeros(len(ids), num_experts, dtype=torch.float64)
    return dense.scatter_add(1, ids.clamp(0, num_experts - 1), weights.double() * valid)
