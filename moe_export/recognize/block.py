"""The record of a recognized MoE layer, and putting its lowered form in place for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from moe_export.ops.layout import SourceLayout
from moe_export.ops.spec import GroupedExperts
from moe_export.recognize.sizes import Size
from moe_export.recognize.unfused import UnfusedExperts
from moe_export.recognize.unfused_hook import UnfusedHookedExperts

Route = Callable[..., tuple[Tensor, Tensor]]
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
        kind: How it was recognized: ``experts hook``, ``module list``, ``parameters`` or
            ``registered``.
        module: Eager's module; its ``forward`` is replaced while the block is bound.
        experts: Attributes of its ``GroupedExperts``, or what its unfused experts compute.
        layout: How the checkpoint stores the weights.
        lowered: The replacement of ``module.forward``.
        parameters: Tensors by attribute name, registered on ``module`` while bound, which
            ``lowered`` reads.
        route: From the module's arguments to ids and weights ``[T, K]``; None where the router
            is not part of the module (experts hook). Works while the block is bound.
        eager_experts: Eager's own experts under a given routing; None where eager's code mixes
            them with the router.
        expert_modules: Eager's expert modules, if each is called with the rows routed to it.
        sums_experts: Whether the module returns the experts' sum and nothing else.
        untraceable: Positions of results that the lowered form does not compute.
        sizes: Capacities that were found from numbers.
        remarks: What a user should know of how the layer was read.
        proof: Evidence that the lowered form computes what eager computes.
    """

    path: str
    kind: str
    module: nn.Module
    experts: GroupedExperts | UnfusedExperts | UnfusedHookedExperts
    lowered: Callable[..., Any]
    layout: SourceLayout = field(default_factory=SourceLayout)
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    route: Route | None = None
    eager_experts: ExpertsFunction | None = None
    expert_modules: Sequence[nn.Module] = ()
    sums_experts: bool = True
    untraceable: frozenset[int] = frozenset()
    sizes: tuple[Size, ...] = ()
    remarks: tuple[str, ...] = ()
    proof: Proof | None = None

    def describe(self) -> dict[str, Any]:
        """Facts for people and for the manifest."""
        return {
            "path": self.path,
            "kind": self.kind,
            "module": type(self.module).__name__,
            "experts": self.experts.to_onnx(),
            "remarks": list(self.remarks),
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
    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever eager passes
        calls[block.path] += 1
        return block.lowered(*args, **kwargs)

    for name, tensor in block.parameters.items():
        parameter = nn.Parameter(tensor.detach(), requires_grad=False)
        module.register_parameter(name, parameter)
        undo.callback(delattr, module, name)
    undo.callback(_restore_forward, module, module.__dict__.get("forward"))
    module.forward = forward


def _restore_forward(module: nn.Module, previous: object) -> None:
    if previous is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = previous
