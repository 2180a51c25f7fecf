"""Find what an expert does between its two projections, from numbers alone."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, get_args

import torch
from torch import Tensor

from moe_export.ops import torch_ops
from moe_export.ops.spec import Activation, GroupedExperts
from moe_export.tolerances import INNER_TOLERANCE

_ALPHAS = (1.0, 1.702)
_FAR = 1.0e4


# Values of ``limit``, ``limit_on`` and ``up_offset``; the attribute record checks them.
Form = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class InnerFit:
    """The best hypothesis and its largest error relative to the largest value."""

    attributes: GroupedExperts
    error: float

    @property
    def agrees(self) -> bool:
        """Whether the hypothesis explains the numbers."""
        return self.error <= INNER_TOLERANCE


def fit_inner(
    base: GroupedExperts, projected: Tensor, hidden: Tensor, forms: Iterable[Form]
) -> InnerFit:
    """Choose activation and form so that ``projected [N, 2·I]`` (or ``[N, I]``) gives ``hidden``.

    Args:
        base: Sizes and ``gated``.
        projected: Inputs of the inner function, gate columns first.
        hidden: What eager made of them, ``[N, I]``.
        forms: What to try besides every activation.
    """
    scale = hidden.abs().max().clamp(min=1e-30)
    best: InnerFit | None = None
    for form, (activation, alpha) in itertools.product(list(forms), _activations()):
        attributes = dataclasses.replace(base, activation=activation, alpha=alpha, **form)
        difference = torch_ops.expert_inner(projected, attributes) - hidden
        error = float(difference.abs().max() / scale)
        if best is None or error < best.error or math.isnan(best.error):
            best = InnerFit(attributes, error)
    if best is None:
        raise ValueError("fit_inner needs at least one form")
    return best


def _activations() -> Iterator[tuple[Activation, float]]:
    for activation in get_args(Activation):
        for alpha in _ALPHAS if activation == "silu" else (1.0,):
            yield activation, alpha


PLAIN: tuple[Form, ...] = ({},)


def probe_inner(base: GroupedExperts, inner: Callable[[Tensor], Tensor]) -> InnerFit:
    """Learn an inner function by calling it on chosen inputs, extremes included.

    Args:
        base: Sizes and ``gated``.
        inner: From ``[N, 2·I]`` (gate columns first) or ``[N, I]`` to ``[N, I]``.
    """
    width = base.intermediate_size
    grid = torch.cat([torch.linspace(-30, 30, 241), torch.tensor([-_FAR, -100.0, 100.0, _FAR])])
    if not base.gated:
        columns = grid[:, None].expand(-1, width)
        return fit_inner(base, columns, inner(columns), PLAIN)

    def call(gate: Tensor, up: Tensor) -> Tensor:
        rows = torch.cat([gate[:, None].expand(-1, width), up[:, None].expand(-1, width)], dim=1)
        return inner(rows)[:, 0]

    coarse = torch.cat([grid[:241:12], grid[241:]])
    gate, up = (t.reshape(-1) for t in torch.meshgrid(coarse, coarse, indexing="ij"))
    projected = torch.stack([gate, up], dim=1)
    narrow = dataclasses.replace(base, intermediate_size=1)
    fit = fit_inner(narrow, projected, call(gate, up)[:, None], _gated_forms(call))
    return InnerFit(dataclasses.replace(fit.attributes, intermediate_size=width), fit.error)


def _gated_forms(call: Callable[[Tensor, Tensor], Tensor]) -> list[Form]:
    """Read the offset of up and the clamp from h = act(g) · (clamp(u) + offset)."""
    gate = torch.full((3,), 0.5)
    at_zero, at_one, far = call(gate, torch.tensor([0.0, 0.125, _FAR])).tolist()
    slope = (at_one - at_zero) / 0.125
    if slope == 0:
        return [{}]
    offset = round(at_zero / slope, 4)
    reach = far / slope - offset
    clamped = reach < _FAR * 0.99
    limit = round(reach, 4) if clamped else 0.0
    ways = ("input", "output") if clamped else ("input",)
    return [{"limit": limit, "limit_on": way, "up_offset": offset} for way in ways]
