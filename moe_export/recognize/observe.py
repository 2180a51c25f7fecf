"""See how eager routes: which rows reach which expert, and with what weight they come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.recorder import Recording, recording
from moe_export.tolerances import RESIDUAL_TOLERANCE


@dataclass(frozen=True)
class ObservedRouting:
    """Routing of one layer on one input, learned without reading its code.

    Attributes:
        record: The eager run.
        hit: ``[T, E]`` bool, which experts each token was sent to.
        weights: ``[T, E]`` float64, zero where not hit.
    """

    record: Recording
    hit: Tensor
    weights: Tensor


def observe_routing(
    path: str, module: nn.Module, experts: Sequence[nn.Module], x: Tensor
) -> ObservedRouting:
    """Run ``module`` on ``x`` and explain its output as a weighted sum of its experts' outputs.

    Args:
        path: The layer's path, for errors.
        module: The layer.
        experts: Its expert modules.
        x: Input ``[..., H]`` whose rows all differ.

    Raises:
        UnsupportedModelError: experts see other rows than the layer's, or the sum does not explain
            the output.
    """
    rows = x.reshape(-1, x.shape[-1])
    with recording(module) as record:
        y = module(x)
    index = {row.numpy().tobytes(): t for t, row in enumerate(rows)}
    outputs = torch.zeros(len(rows), len(experts), rows.shape[-1], dtype=torch.float64)
    hit = torch.zeros(len(rows), len(experts), dtype=torch.bool)
    for e, expert in enumerate(experts):
        for call in record.calls.get(expert, []):
            seen = call.args[0].reshape(-1, rows.shape[-1])
            tokens = [index.get(row.numpy().tobytes()) for row in seen]
            if None in tokens:
                raise UnsupportedModelError(
                    f"{path}: expert {e} is not called with rows of the layer's input"
                )
            hit[tokens, e] = True
            outputs[tokens, e] = call.result.reshape(seen.shape).double()
    weights = _solve(path, outputs, hit, y.reshape(rows.shape).double())
    return ObservedRouting(record, hit, weights)


def _solve(path: str, outputs: Tensor, hit: Tensor, y: Tensor) -> Tensor:
    """Least squares per token: y = Σ w · output."""
    weights = torch.zeros_like(hit, dtype=torch.float64)
    worst = 0.0
    for t in range(len(y)):
        chosen = hit[t].nonzero()[:, 0]
        columns = outputs[t, chosen].T
        solution = torch.linalg.lstsq(columns, y[t, :, None]).solution[:, 0]
        weights[t, chosen] = solution
        worst = max(worst, float((columns @ solution - y[t]).abs().max()))
    error = worst / (float(y.abs().max()) or 1.0)
    if not error <= RESIDUAL_TOLERANCE:
        raise UnsupportedModelError(
            f"{path}: its output is not a weighted sum of its experts' outputs: {error:.1e} of the "
            "largest value is left over. A residual, a shared expert or a norm inside the layer "
            "needs a description (register_block, with combine)"
        )
    return weights
