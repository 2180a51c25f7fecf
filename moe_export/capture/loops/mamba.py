"""Mamba's selective scan (Jamba)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from moe_export.capture.loops.form import Arguments, LoopForm


def selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803 - the names by which models pass them
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,  # noqa: ANN401 - such as the ways to compute it
) -> Tensor | tuple[Tensor, Tensor]:
    """What mamba-ssm's ``selective_scan_fn`` computes.

    Args:
        hidden_states: ``[batch, channels, T]``.
        dt: Steps, as the hidden states.
        A: ``[channels, N]``, below 0.
        B: ``[batch, N, T]``.
        C: ``[batch, N, T]``.
        D: ``[channels]``, how much of the input is added.
        z: A gate, as the hidden states.
        delta_bias: ``[channels]``, added to the steps.
        delta_softplus: Whether the steps go through a softplus.
        return_last_state: Whether the state behind the last token is returned too.

    Returns:
        ``[batch, channels, T]``, and the state ``[batch, channels, N]`` if asked for.
    """
    if delta_bias is not None:
        dt = dt + delta_bias[:, None]
    if delta_softplus:
        dt = F.softplus(dt)
    x, step, b, c = (t.float().transpose(1, 2) for t in (hidden_states, dt, B, C))
    state = x.new_zeros(x.shape[0], A.shape[0], A.shape[1])
    output, last = torch.ops.moe_export.selective_scan(x, step, A.float(), b, c, state)
    y = output.transpose(1, 2)
    if D is not None:
        y = y + hidden_states * D[:, None]
    if z is not None:
        y = y * F.silu(z)
    return (y, last) if return_last_state else y


def _draw(
    arguments: Arguments, batch: int, length: int, generator: torch.Generator
) -> dict[str, Any]:
    drawn = {
        name: torch.randn(batch, arguments[name].shape[1], length, generator=generator)
        for name in ("hidden_states", "dt", "B", "C", "z")
        if arguments.get(name) is not None
    }
    if not arguments.get("delta_softplus"):
        drawn["dt"] = F.softplus(drawn["dt"])
    drawn["A"] = -torch.randn(tuple(arguments["A"].shape), generator=generator).exp()
    for name in ("D", "delta_bias"):
        if arguments.get(name) is not None:
            drawn[name] = torch.randn(tuple(arguments[name].shape), generator=generator)
    return {**arguments, **{name: t.to(arguments[name].dtype) for name, t in drawn.items()}}


SELECTIVE_SCAN = LoopForm(
    name="Mamba's selective scan",
    compute=selective_scan,
    draw=_draw,
    widths={
        "hidden_states": (1,),
        "dt": (1,),
        "A": (0, 1),
        "B": (1,),
        "C": (1,),
        "D": (0,),
        "z": (1,),
        "delta_bias": (0,),
    },
    parameters=frozenset(
        {"hidden_states", "dt", "A", "B", "C", "D", "z", "delta_bias", "return_last_state"}
    ),
)
