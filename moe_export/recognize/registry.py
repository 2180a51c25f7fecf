"""The public way to describe an MoE layer that is not recognized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from moe_export.errors import UsageError
from moe_export.ops.spec import Activation, GroupedExperts, LimitOn, WeightOn
from moe_export.recognize.block import Route


@dataclass(frozen=True, kw_only=True)
class BlockDescription:
    """What a user says about one MoE layer; it is proved against eager before it is used.

    Attributes:
        route: From rows ``x [T, H]`` to ``expert_ids [T, K]`` (int32 or int64) and
            ``expert_weights [T, K]``; traceable by ``torch.export``. ``moe_export.top_k_gating``
            is the usual way to write it.
        up_weight: ``[E, 2·I, H]``, gate rows before up rows; ``[E, I, H]`` when not ``gated``.
        down_weight: ``[E, H, I]``.
        up_bias: ``[E, 2·I]`` or ``[E, I]``.
        down_bias: ``[E, H]``.
        gated: Whether an expert is act(gate)·up or act(up).
        activation: The nonlinearity; ``alpha``, ``limit``, ``limit_on``, ``up_offset`` and
            ``weight_on`` are as in the op contract, ``plugins/README.md``.
        combine: What the layer makes of its rows and the experts' sum, both ``[T, H]``, such as
            adding a shared expert; the sum itself without it.
    """

    route: Route
    up_weight: Tensor
    down_weight: Tensor
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    gated: bool = True
    activation: Activation = "silu"
    alpha: float = 1.0
    limit: float = 0.0
    limit_on: LimitOn = "input"
    up_offset: float = 0.0
    weight_on: WeightOn = "output"
    combine: Callable[[Tensor, Tensor], Tensor] | None = None

    def attributes(self) -> GroupedExperts:
        """The op attributes that the tensors' shapes and the fields imply.

        Raises:
            ContractError: a shape does not fit; the text names the tensor.
        """
        num_experts, hidden_size, intermediate_size = self.down_weight.shape
        attributes = GroupedExperts(
            num_experts=num_experts,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            gated=self.gated,
            activation=self.activation,
            alpha=self.alpha,
            limit=self.limit,
            limit_on=self.limit_on,
            up_offset=self.up_offset,
            weight_on=self.weight_on,
            has_bias=self.up_bias is not None,
        )
        shapes = {name: tuple(t.shape) for name, t in self.tensors().items()}
        token = {"x": (1, hidden_size), "expert_ids": (1, 1), "expert_weights": (1, 1)}
        attributes.check_shapes({**token, **shapes})
        return attributes

    def tensors(self) -> dict[str, Tensor]:
        """The weights and biases by the op's input names."""
        named = {"up_weight": self.up_weight, "down_weight": self.down_weight}
        if (self.up_bias is None) != (self.down_bias is None):
            raise UsageError("a BlockDescription has both up_bias and down_bias, or neither")
        if self.up_bias is not None and self.down_bias is not None:
            named |= {"up_bias": self.up_bias, "down_bias": self.down_bias}
        return named


Describe = Callable[[nn.Module], BlockDescription]
_Function = TypeVar("_Function", bound=Callable[..., BlockDescription])

_REGISTERED: dict[type[nn.Module], Describe] = {}


def register_block(module_class: type[nn.Module]) -> Callable[[_Function], _Function]:
    """Register the decorated function as the description of every ``module_class`` layer.

    The layer must map one tensor ``[..., H]`` to one of the same shape. Write the function beside
    the class, so that it is there whenever the class is imported:

        @moe_export.register_block(MyLayer)
        def describe(layer: MyLayer) -> moe_export.BlockDescription: ...

    Raises:
        UsageError: ``module_class`` is not a class of modules.
    """
    if not (isinstance(module_class, type) and issubclass(module_class, nn.Module)):
        raise UsageError(f"register_block takes a class of torch modules; found {module_class!r}")

    def register(describe: _Function) -> _Function:
        _REGISTERED[module_class] = describe
        return describe

    return register


def registered_description(module: nn.Module) -> Describe | None:
    """The function registered for the module's class or the nearest of its bases."""
    return next((_REGISTERED[c] for c in type(module).__mro__ if c in _REGISTERED), None)
