"""Find the ``TopKGating`` that explains an observed routing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_export.ops import torch_ops
from moe_export.ops.spec import TopKGating
from moe_export.tolerances import GATING_TOLERANCE


@dataclass(frozen=True)
class GatingFit:
    """The best hypothesis, the tokens it routes elsewhere, and its largest weight error."""

    attributes: TopKGating
    wrong_tokens: int
    error: float

    @property
    def agrees(self) -> bool:
        """Whether the hypothesis explains the routing."""
        return self.wrong_tokens == 0 and self.error <= GATING_TOLERANCE


def _hypotheses(top_k: int) -> list[TopKGating]:
    base = TopKGating(top_k=top_k)
    scored = [
        dataclasses.replace(base, score_function=score, renormalize=renormalize)
        for score in ("softmax", "sigmoid", "identity")
        for renormalize in (False, True)
    ]
    # Softmax over the kept logits equals the renormalized softmax, and is how it is mostly written.
    selected = [
        dataclasses.replace(base, score_function="identity", weight_function=weight)
        for weight in ("softmax", "sigmoid")
    ]
    return [*selected, *scored]


def fit_gating(logits: Tensor, hit: Tensor, weights: Tensor) -> GatingFit:
    """Choose attributes so that the gating of ``logits`` gives ``weights``.

    Args:
        logits: ``[T, E]`` candidates for the router's scores.
        hit: ``[T, E]`` bool, the experts that eager ran; the same number for every token.
        weights: ``[T, E]`` float64, eager's weights, zero elsewhere.
    """
    top_k = int(hit[0].sum())
    fits = [_try(h, logits, hit, weights) for h in _hypotheses(top_k)]
    return min(fits, key=lambda fit: (fit.wrong_tokens, not fit.agrees, fit.error))


def _try(attributes: TopKGating, logits: Tensor, hit: Tensor, weights: Tensor) -> GatingFit:
    ids, found = torch_ops.top_k_gating(logits, attributes)
    chosen = torch.zeros_like(hit).scatter(1, ids.long(), True)
    wrong = int((chosen != hit).any(dim=1).sum())
    dense = torch.zeros_like(weights).scatter(1, ids.long(), found.double())
    scale = _common_factor(weights[hit], dense[hit])
    if scale != 1.0:
        attributes = dataclasses.replace(attributes, scale=scale)
    error = float((dense * scale - weights).abs().max() / weights.abs().max().clamp(min=1e-30))
    return GatingFit(attributes, wrong, error)


def _common_factor(expected: Tensor, found: Tensor) -> float:
    """A constant scale on the weights, rounded to what a configuration would say."""
    usable = found.abs() > 1e-3
    if not bool(usable.any()):
        return 1.0
    factor = float((expected[usable] / found[usable]).median())
    return round(factor, 4) if factor == factor and factor != 0 else 1.0
