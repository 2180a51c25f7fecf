"""The record of a recognized MoE layer, and putting its lowered form in place for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moe_export.ops import torch_ops
from moe_export.ops.layout import SourceLayout
from moe_export.ops.spec import GroupedExperts, TopKGating

Route = Callable[[Tensor], tuple[Tensor, Tensor]]
ExpertsFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Proof:
    """What the lowered form was compared with eager on.

    Attributes:
        tokens: Token counts tried.
        experts_reached: Experts that at least one probe token was routed to.
        max_error: Largest difference found, relative to the largest output.
    """

    tokens: tuple[int, ...]
    experts_reached: int
    max_error: float


@dataclass(frozen=True)
class MoeBlock:
    """One MoE layer of the model and its lowered form.

    Attributes:
        path: The module's path in the model.
        kind: How it was recognized: ``experts hook``, ``module list`` or ``registered``.
        module: Eager's module; its ``forward`` is replaced while the block is bound.
        experts: Attributes of its ``GroupedExperts``.
        gating: Attributes of its ``TopKGating``; None where the router stays standard operators.
        layout: How the checkpoint stores the weights.
        lowered: The replacement of ``module.forward``.
        parameters: Tensors registered on ``module`` while bound, which ``lowered`` reads.
        route: From rows ``[T, H]`` to ids and weights; None where the router is not part of the
            module (experts hook).
        eager_experts: Eager's own experts under a given routing; None where eager's code mixes
            them with the router.
        expert_modules: Eager's expert modules, whose calls can be counted.
        sums_experts: Whether the module returns the experts' sum and nothing else.
        proof: Evidence that the lowered form computes what eager computes.
    """

    path: str
    kind: str
    module: nn.Module
    experts: GroupedExperts
    gating: TopKGating | None
    lowered: Callable[..., Tensor]
    layout: SourceLayout = field(default_factory=SourceLayout)
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    route: Route | None = None
    eager_experts: ExpertsFunction | None = None
    expert_modules: Sequence[nn.Module] = ()
    sums_experts: bool = True
    proof: Proof | None = None

    def describe(self) -> dict[str, Any]:
        """Facts for people and for the manifest."""
        return {
            "path": self.path,
            "kind": self.kind,
            "module": type(self.module).__name__,
            "router": "TopKGating" if self.gating else "standard operators",
            "experts": self.experts.to_onnx(),
            "gating": self.gating.to_onnx() if self.gating else None,
            "proof": vars(self.proof) if self.proof else None,
        }


def parameter_name(input_name: str) -> str:
    """Attribute under which a bound module holds the stacked tensor of an op's input."""
    return f"moe_export_{input_name}"


@contextmanager
def bound(blocks: Sequence[MoeBlock]) -> Iterator[dict[str, int]]:
    """Replace the blocks' ``forward`` by their lowered form; restore everything on leaving.

    Yields:
        How often each block was called since, by path.
    """
    calls = {block.path: 0 for block in blocks}
    with ExitStack() as undo:
        for block in blocks:
            _bind(block, calls, undo)
        yield calls


def _bind(block: MoeBlock, calls: dict[str, int], undo: ExitStack) -> None:
    module = block.module

    # torch.export reads the signature, which matters where the layer is the whole model.
    @functools.wraps(module.forward)
    def forward(*args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 - whatever eager passes
        calls[block.path] += 1
        return block.lowered(*args, **kwargs)

    for name, tensor in block.parameters.items():
        parameter = nn.Parameter(tensor.detach(), requires_grad=False)
        module.register_parameter(parameter_name(name), parameter)
        undo.callback(delattr, module, parameter_name(name))
    undo.callback(_restore_forward, module, module.__dict__.get("forward"))
    module.forward = forward


def _restore_forward(module: nn.Module, previous: object) -> None:
    if previous is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = previous


def lowered_layer(
    module: nn.Module,
    path: str,
    route: Route,
    experts: GroupedExperts,
    combine: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Callable[..., Tensor]:
    """The lowered form of a whole layer ``[..., H] -> [..., H]`` that routes by itself.

    Args:
        module: Holds the stacked weights while bound.
        path: The module's path.
        route: From rows ``[T, H]`` to ids and weights.
        experts: Attributes of the experts.
        combine: What the layer makes of its rows and the experts' sum, both ``[T, H]``; the sum
            itself without it.
    """

    def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
        # One tensor, under whatever name: recognition has made sure of it.
        x = next(value for value in (*args, *kwargs.values()) if value is not None)
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        ids, weights = route(rows)
        stacked = [getattr(module, parameter_name(n)) for n in experts.input_names()[3:]]
        y = torch_ops.grouped_experts([rows, ids, weights, *stacked], experts, path=path)
        out = y if combine is None else combine(rows, y)
        return out if x.dim() == 2 else out.reshape(x.shape)

    return forward


def evaluate_lowered(block: MoeBlock, x: Tensor) -> Tensor:
    """Run the lowered form of a layer in eager."""
    with bound([block]), torch.no_grad():
        result: Tensor = block.module(x)
    return result
