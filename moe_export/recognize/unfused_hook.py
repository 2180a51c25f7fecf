"""Hooked experts that are not the contract's FFN: their own code between grouped products.

The hook says where an expert's two products are, so that only they are replaced; what the class
does between and after them runs on rows sorted by expert, as standard operators.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from moe_export.ops import torch_ops
from moe_export.ops.spec_rows import ExpertCombine, ExpertDispatch, GroupedMatMul

_VIEWS = frozenset({"t", "view", "split", "slice", "transpose", "unsqueeze", "detach", "alias"})


@dataclass(frozen=True)
class UnfusedHookedExperts:
    """The decorated class's experts as rows through grouped products.

    Attributes:
        num_experts: E.
        hidden_size: Width of the rows that go in and come out.
        up: The first product.
        down: The second product.
        gated: Whether the class has ``_apply_gate`` between them, or ``act_fn``.
        post_norm: Whether the class normalizes each expert's result.
        operators: What runs between and after the products, for people.
    """

    num_experts: int
    hidden_size: int
    up: GroupedMatMul
    down: GroupedMatMul
    gated: bool
    post_norm: bool
    operators: tuple[str, ...] = field(default=())
    first_expert: int = 0

    def to_onnx(self) -> dict[str, Any]:
        """Facts for people and for the manifest."""
        return {
            "num_experts": self.num_experts,
            "hidden_size": self.hidden_size,
            "output_size": self.hidden_size,
            "operators": ", ".join(("mm", *self.operators, "mm")),
        }

    def inner(self, module: Any, projected: Tensor) -> Tensor:  # noqa: ANN401 - checked by running
        """``[M, up]`` to ``[M, I]``, by the class's own code."""
        made: Tensor = module._apply_gate(projected) if self.gated else module.act_fn(projected)
        return made

    def after(self, module: Any, made: Tensor) -> Tensor:  # noqa: ANN401 - checked by running
        """``[M, H]`` to ``[M, H]``: the class's norm of each expert's result, if it has one."""
        normalized: Tensor = module.post_expert_norm(made) if self.post_norm else made
        return normalized

    def lower(
        self,
        module: nn.Module,
        inputs: tuple[Tensor, Tensor, Tensor],
        tensors: dict[str, Tensor],
        path: str,
    ) -> Tensor:
        """The weighted sum ``[T, H]`` of the experts' results through the ops of the contract.

        Args:
            module: The decorated experts.
            inputs: Rows ``[T, H]``, ids ``[T, K]`` and weights ``[T, K]``.
            tensors: Stacked weights ``[E, out, in]`` and biases ``[E, out]`` by the names of
                ``GroupedExperts``.
            path: The module in the model.
        """
        rows, ids, weights = inputs
        dispatch = ExpertDispatch(num_experts=self.num_experts, hidden_size=self.hidden_size)
        by_expert, row_map, ends, _ = torch_ops.expert_dispatch(rows, ids, dispatch, path=path)

        def product(x: Tensor, name: str, attributes: GroupedMatMul) -> Tensor:
            weight, bias = tensors[f"{name}_weight"], tensors.get(f"{name}_bias")
            return torch_ops.grouped_matmul(x, weight, ends, attributes, bias, path=path)

        hidden = self.inner(module, product(by_expert, "up", self.up))
        made = self.after(module, product(hidden, "down", self.down))
        combine = ExpertCombine(hidden_size=self.hidden_size)
        return torch_ops.expert_combine(made, row_map, weights, combine, path=path)


class _OperatorNames(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: dict[str, None] = {}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator overload
        types: Any,  # noqa: ANN401 - torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operator returns
        name = str(func).removeprefix("aten.").split(".")[0]
        if name not in _VIEWS:
            self.names[name] = None
        return func(*args, **(kwargs or {}))


def inner_operators(experts: UnfusedHookedExperts, module: nn.Module) -> tuple[str, ...]:
    """Names of the operators that the class runs around its second product."""
    projected, made = torch.zeros(2, experts.up.out_features), torch.zeros(2, experts.hidden_size)
    with torch.no_grad(), _OperatorNames() as seen:
        experts.inner(module, projected)
        experts.after(module, made)
    return tuple(seen.names)
