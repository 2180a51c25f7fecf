"""What the zoo knows of a layer: how to make it, what to feed it, and how it behaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

H = 24

Inputs = Callable[[], tuple[Tensor, ...]]


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a random value that matters: spread routers, non-zero biases."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape):
        return torch.randn(shape, generator=generator)

    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 0 or (p.dim() == 1 and bool((p == p[0]).all()) and float(p[0]) == 1.0):
                p.mul_(1 + 0.2 * draw(p.shape))  # a norm's weight, a scale, a temperature
            elif p.dim() == 1:
                p.copy_(0.3 * draw(p.shape))
            else:
                p.copy_(1.4 * draw(p.shape) / (sum(p.shape[-2:]) / 2) ** 0.5)
    return model.eval()


@dataclass(frozen=True)
class Made:
    """A seeded construction; overrides make the same layer in another size."""

    build: Callable[..., nn.Module]
    arguments: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)

    def __call__(self, **overrides: Any) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = settle(self.build(**{**self.arguments, **overrides}))
        with torch.no_grad():
            for name, scale in self.scales.items():
                model.get_parameter(name).mul_(scale)
        return model

    def scaled(self, name: str, scale: float) -> Made:
        """The same with one parameter multiplied, so that scores are not saturated."""
        return replace(self, scales={**self.scales, name: scale})


def made(build: Callable[..., nn.Module], **arguments: Any) -> Made:
    return Made(build, arguments)


def floats(*shape: int, seed: int = 0) -> Inputs:
    """One input of normally distributed numbers."""

    def draw():
        generator = torch.Generator().manual_seed(sum(shape) + 1000 * seed)
        return (torch.randn(shape, generator=generator),)

    return draw


def with_ids(high: int, *shape: int) -> Inputs:
    """Hidden states of ``[*shape, H]`` and integers below ``high`` of ``shape``."""

    def draw():
        generator = torch.Generator().manual_seed(sum(shape))
        x = torch.randn((*shape, H), generator=generator)
        return x, torch.randint(high, shape, generator=generator)

    return draw


def ids(high: int, *shape: int) -> Inputs:
    """One input of integers below ``high``."""
    return lambda: with_ids(high, *shape)()[1:]


# Keyword arguments of a ZooLayer whose input is [T, H], or [B, S, H].
ROWS: dict[str, Any] = {
    "inputs": floats(12, H),
    "other_inputs": (floats(1, H), floats(7, H), floats(65, H)),
}
SEQUENCES: dict[str, Any] = {
    "inputs": floats(2, 6, H),
    "other_inputs": (floats(1, 1, H), floats(3, 7, H), floats(1, 40, H), floats(4, 16, H)),
}


@dataclass(frozen=True)
class ZooLayer:
    """A layer or model of the zoo.

    Attributes:
        name: Unique name, the test's id.
        make: Makes the module, the same each time; keyword arguments change its sizes.
        inputs: Makes the example inputs, in the order of ``forward``'s arguments.
        num_experts: Experts that a token may be routed to, in each MoE layer.
        moe_layers: MoE layers in the module.
        note: What is particular about it.
        other_inputs: Inputs of other shapes or values than the example's.
        coupled: Whether entries along axis 0 change one another's result; None if that has no
            meaning here.
        experts: Where the experts' parameters are: attribute paths of a container with one entry
            per expert, of a tensor (``@1`` names another axis than 0), or with ``{e}`` or
            ``{letter}``.
        reached: Least share of the experts that all inputs together must use.
    """

    name: str
    make: Callable[..., nn.Module]
    inputs: Inputs
    num_experts: int
    moe_layers: int = 1
    note: str = ""
    other_inputs: tuple[Inputs, ...] = ()
    coupled: bool | None = False
    experts: tuple[str, ...] = ("experts",)
    reached: float = 0.75

    def expert_parameters(self, model: nn.Module, expert: int) -> list[Tensor]:
        """Views of the parameters of one expert (of every MoE layer that ``experts`` names)."""
        found: list[Tensor] = []
        for path in self.experts:
            name, _, axis = path.partition("@")
            part: Any = model
            own = name.format(e=expert, letter=chr(ord("a") + expert))
            for step in own.split("."):
                part = part[int(step)] if step.isdigit() else getattr(part, step)
            if own != name:
                pass
            elif isinstance(part, Tensor):
                dim = int(axis or 0)
                part = part.chunk(self.num_experts, dim)[expert]
            elif isinstance(part, nn.ModuleDict | nn.ParameterDict):
                part = list(part.values())[expert]
            else:
                part = part[expert]
            found += [part] if isinstance(part, Tensor) else list(part.parameters())
        return found
