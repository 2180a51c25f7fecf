"""What the expert modules of a list compute: two or three linear layers and an activation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_export.errors import UnsupportedModelError
from moe_export.ops import torch_ops
from moe_export.ops.spec import GroupedExperts
from moe_export.recognize.expert_inner import PLAIN, InnerFit, fit_inner
from moe_export.recognize.recorder import Recording, recording
from moe_export.tolerances import LAYER_TOLERANCE, relative_error

_PROBE_ROWS = 64


@dataclass(frozen=True)
class ExpertForm:
    """Attributes of the experts and where each one's linear layers are.

    Attributes:
        attributes: Of the ``GroupedExperts`` they become.
        up_names: Names of gate and up (or up alone) inside an expert, in the op's order.
        down_name: Name of the down projection inside an expert.
    """

    attributes: GroupedExperts
    up_names: tuple[str, ...]
    down_name: str

    def stack(self, experts: Sequence[nn.Module]) -> dict[str, Tensor]:
        """Stack the experts' tensors by the op's input names."""
        stacked = {
            "up_weight": torch.stack([self._join(e, "weight") for e in experts]),
            "down_weight": torch.stack([self._down(e, "weight") for e in experts]),
        }
        if self.attributes.has_bias:
            stacked["up_bias"] = torch.stack([self._join(e, "bias") for e in experts])
            stacked["down_bias"] = torch.stack([self._down(e, "bias") for e in experts])
        return stacked

    def _down(self, expert: nn.Module, kind: str) -> Tensor:
        return expert.get_parameter(f"{self.down_name}.{kind}")

    def _join(self, expert: nn.Module, kind: str) -> Tensor:
        return torch.cat([expert.get_parameter(f"{name}.{kind}") for name in self.up_names])


def find_expert_form(path: str, experts: Sequence[nn.Module], hidden_size: int) -> ExpertForm:
    """Learn the form from the first expert and check it on every one.

    Args:
        path: Path of the list, for errors.
        experts: The alike modules.
        hidden_size: Width of the rows they are called with.

    Raises:
        UnsupportedModelError: the experts are no such FFN; says how near the best guess came.
    """
    linears = {n: m for n, m in experts[0].named_modules() if isinstance(m, nn.Linear)}
    if len(linears) not in (2, 3):
        raise UnsupportedModelError(
            f"{path}: an expert ({type(experts[0]).__name__}) has {len(linears)} linear layers; "
            "known experts have two (up, down) or three (gate, up, down)"
        )
    if len({layer.bias is not None for layer in linears.values()}) != 1:
        raise UnsupportedModelError(f"{path}: only some linear layers of an expert have a bias")
    with recording(experts[0]) as record:
        experts[0](_probe_rows(hidden_size))
    orders = itertools.permutations(linears)
    fits = [f for o in orders if (f := _fit(record, linears, o, hidden_size)) is not None]
    best = min(fits, key=lambda c: c[1].error, default=None)
    if best is None or not best[1].agrees:
        near = f"; the nearest is off by {best[1].error:.1e} of the largest value" if best else ""
        raise UnsupportedModelError(
            f"{path}: no activation of the contract explains what an expert "
            f"({type(experts[0]).__name__}) does between its linear layers{near}"
        )
    order, fit = best
    form = ExpertForm(fit.attributes, order[:-1], order[-1])
    _check_every_expert(path, experts, form)
    return form


def _probe_rows(width: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(_PROBE_ROWS, width, generator=generator)
    return torch.cat([rows, 8 * rows])


def _fit(
    record: Recording, linears: dict[str, nn.Linear], order: tuple[str, ...], hidden_size: int
) -> tuple[tuple[str, ...], InnerFit] | None:
    """Try ``order`` as (gate, up, down) or (up, down); None where the shapes rule it out."""
    *ups, down = (linears[name] for name in order)
    inner = ups[0].out_features
    if any((u.in_features, u.out_features) != (hidden_size, inner) for u in ups):
        return None
    if (down.in_features, down.out_features) != (inner, hidden_size):
        return None
    if any(len(record.calls.get(layer, [])) != 1 for layer in (*ups, down)):
        return None
    attributes = GroupedExperts(
        num_experts=1,
        hidden_size=hidden_size,
        intermediate_size=inner,
        gated=len(ups) == 2,
        has_bias=down.bias is not None,
    )
    projected = torch.cat([record.calls[u][0].result for u in ups], dim=-1)
    return order, fit_inner(attributes, projected, record.calls[down][0].args[0], PLAIN)


def _check_every_expert(path: str, experts: Sequence[nn.Module], form: ExpertForm) -> None:
    rows = _probe_rows(form.attributes.hidden_size)
    for index, expert in enumerate(experts):
        stacked = {name: tensor[0] for name, tensor in form.stack([expert]).items()}
        with torch.no_grad():
            expected = expert(rows)
            found = torch_ops.expert_ffn(rows, stacked, form.attributes)
        error = relative_error(found.numpy(), expected.numpy())
        if not error <= LAYER_TOLERANCE:
            raise UnsupportedModelError(
                f"{path}.{index} ({type(expert).__name__}) is not the FFN that its linear layers "
                f"suggest: off by {error:.1e} of the largest output. A norm, a residual or a scale "
                "inside an expert is not supported yet"
            )
