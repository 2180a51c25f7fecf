"""Experts as recognition sees them, wherever their parameters live."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_export.ops import torch_ops
from moe_export.ops.spec import GroupedExperts
from moe_export.recognize.unfused import UnfusedExperts


@dataclass(frozen=True)
class ExpertBank:
    """E experts that one call of an op, or one chain of ops, computes.

    Attributes:
        label: Where they are in the layer, for people.
        form: What the ops compute.
        tensors: Stacked weights and biases by name, ``[E, ...]`` row-major.
        modules: Eager's expert modules, where experts are modules.
        copies: Ids of experts that give their row back.
        zeros: Ids of experts that give nothing.
    """

    label: str
    form: GroupedExperts | UnfusedExperts
    tensors: Mapping[str, Tensor]
    modules: Sequence[nn.Module] = ()
    copies: tuple[int, ...] = ()
    zeros: tuple[int, ...] = ()

    @property
    def num_experts(self) -> int:
        """E, with experts that compute nothing."""
        return self.form.num_experts + len(self.copies) + len(self.zeros)

    @property
    def sizes(self) -> tuple[int, int]:
        """Widths of the rows that go in and come out."""
        if isinstance(self.form, UnfusedExperts):
            return self.form.hidden_size, self.form.output_size
        return self.form.hidden_size, self.form.hidden_size

    def lower(
        self, rows: Tensor, ids: Tensor, weights: Tensor, tensors: Sequence[Tensor], path: str
    ) -> Tensor:
        """The experts' weighted sum ``[T, N]`` through the ops of the contract.

        Args:
            rows: ``[T, H]``.
            ids: ``[T, K]``; an id out of range adds nothing.
            weights: ``[T, K]``.
            tensors: ``self.tensors``' values, in their order.
            path: The layer's path.
        """
        if isinstance(self.form, UnfusedExperts):
            named = dict(zip(self.tensors, tensors, strict=True))
            y = self.form.lower(rows, ids, weights, named, path)
        else:
            given = [rows, ids, weights, *tensors]
            y = torch_ops.grouped_experts(given, self.form, path=path)
        for copy in self.copies:
            y = y + rows * (weights * (ids == copy)).sum(1, keepdim=True)
        return y

    def outputs(self, rows: Tensor) -> Tensor:
        """Every expert on every row, ``[E, N, out]``."""
        with torch.no_grad():
            return torch.stack([self.expert(e, rows) for e in range(self.num_experts)])

    def expert(self, index: int, rows: Tensor) -> Tensor:
        """One expert on ``rows [N, H]``."""
        if index in self.copies:
            return rows
        if index in self.zeros:
            return torch.zeros_like(rows)
        index -= self.form.first_expert
        if isinstance(self.form, UnfusedExperts):
            return self.form.run({n: t[index] for n, t in self.tensors.items()}, rows)
        one = {name: t[index] for name, t in self.tensors.items()}
        return torch_ops.expert_ffn(rows, one, self.form)

    def eager(self) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """Eager's own experts under a given routing; None where they are not modules."""
        if not self.modules:
            return None

        def run(x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
            y = x.new_zeros(len(x), self.sizes[1])
            with torch.no_grad():
                for e, expert in enumerate(self.modules):
                    token, slot = (expert_ids == e).nonzero(as_tuple=True)
                    if len(token):
                        out = expert(x[token]).reshape(len(token), -1)
                        y.index_add_(0, token, out * expert_weights[token, slot, None])
            return y

        return run
