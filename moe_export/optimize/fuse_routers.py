"""Replace routers by ``TopKGating`` where they do the same, whatever operators they are made of.

Rules:

1. A cut from some value ``[..., E]`` to ids and weights (``router_slice``), the longest first.
2. Every value inside keeps the tokens apart (``row_independence``).
3. Some attributes of the op explain what the cut does on probe logits, and on further ones that
   they were not fitted on (``router_fit``, ``confirm``).
4. The experts of a token may come in another order only where nothing but the layer's
   ``GroupedExperts``, which sums over them, reads ids and weights.

Where a rule is broken the operators stay: they are right, only slower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from moe_export.lower.gating_words import describe_gating
from moe_export.lower.layers import LoweredLayer, expert_ends
from moe_export.ops.spec import TopKGating
from moe_export.optimize.confirm import confirm
from moe_export.optimize.observation import observe
from moe_export.optimize.probes import draw_probes
from moe_export.optimize.replace_router import FoundRouter, layer_nodes, replace_router
from moe_export.optimize.router_fit import RouterFit, fit_router
from moe_export.optimize.router_pairs import ingredients, router_pairs
from moe_export.optimize.router_slice import (
    NoCutError,
    RouterSlice,
    ancestors,
    cut_router,
    router_starts,
)
from moe_export.optimize.row_independence import coupled_values
from moe_export.optimize.slice_run import SliceRunner
from moe_export.progress import Progress

COUPLED = "tokens depend on each other"


def fuse_routers(
    model: ir.Model, layers: Sequence[LoweredLayer], progress: Progress
) -> tuple[LoweredLayer, ...]:
    """Fuse the router of every layer that has none yet.

    Args:
        model: Rewritten in place.
        layers: The model's layers.
        progress: Moves a bar.

    Returns:
        The layers, each with its router in words, or why it was not fused.
    """
    known: list[TopKGating] = []
    return tuple(
        layer if layer.gating else _fuse(model, layer, known)
        for layer in progress.track(layers, "routers")
    )


def _fuse(model: ir.Model, layer: LoweredLayer, known: list[TopKGating]) -> LoweredLayer:
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    ids, weights = values[layer.expert_ids], values[layer.expert_weights]
    num_experts = layer.block.experts.num_experts
    reasons = _Reasons()
    for start in router_starts(model.graph, [ids, weights], num_experts):
        try:
            part = cut_router(model, start, ids, weights, num_experts)
            found = _explain(part, known, reasons, any_order=_only_summed(model, layer))
        except NoCutError as error:
            reasons.add_cut(str(error))
            continue
        if found is not None:
            if found.attributes not in known:
                known.insert(0, found.attributes)
            return replace_router(model, layer, found)
    return dataclasses.replace(layer, routing=reasons.text())


def _explain(
    part: RouterSlice, known: Sequence[TopKGating], reasons: _Reasons, *, any_order: bool
) -> FoundRouter | None:
    """The first pair of the cut that some attributes explain."""
    runner = SliceRunner(part)
    probes = draw_probes(part.num_experts, seed=0)
    run = runner.run(probes.logits)
    coupled = _coupled(part, runner)
    parts = ingredients(part, run)
    for ids, weights in router_pairs(part, run):
        above = {str(v.name) for end in (ids, weights) for v in ancestors(part.model.graph, end)}
        if above & coupled:
            reasons.add_coupled()
            continue
        own = (ids, weights) == (part.ids, part.weights)
        seen = observe(part.model.graph, run, probes, ids, weights, part.top_k)
        fit = fit_router(seen, parts, known)
        if fit is None:
            continue
        if fit.holds:
            confirmed = confirm(part, runner, ids, weights, fit, parts.biases)
            fit = confirmed.fit
            if fit.holds and (confirmed.same_order or (own and any_order)):
                return FoundRouter(
                    part.logits, ids, weights, fit.attributes, fit.bias, part.num_experts, own
                )
        if own:
            reasons.add_fit(fit)
    return None


def _coupled(part: RouterSlice, runner: SliceRunner) -> set[str]:
    """Values that hold one token's logits in another's place (rule 2)."""
    random = np.random.default_rng(3)
    shape = (36, part.num_experts)
    logits = random.standard_normal(shape).astype(np.float32)
    base = runner.run(logits)
    coupled: set[str] = set()
    for kept in (np.arange(36) % 2 == 0, np.arange(36) % 13 == 5):
        other = (2 * random.standard_normal(shape)).astype(np.float32)
        changed = runner.run(np.where(kept[:, None], logits, other))
        coupled |= coupled_values(base, changed, kept)
    return coupled


def _only_summed(model: ir.Model, layer: LoweredLayer) -> bool:
    """Whether nothing but the layer's ``GroupedExperts`` reads its ids and weights (rule 4)."""
    first, last = expert_ends(layer.block.path, layer_nodes(model, layer.block.path))
    ends = (first.inputs[1], last.inputs[2])
    return first is last and all(
        value is not None
        and not value.is_graph_output()
        and {user for user, _ in value.uses()} == {last}
        for value in ends
    )


class _Reasons:
    """Why no cut was fused: the most telling reason wins."""

    def __init__(self) -> None:
        self._coupled = False
        self._nearest: RouterFit | None = None
        self._cut = "no value has one column per expert"

    def add_coupled(self) -> None:
        self._coupled = True

    def add_cut(self, text: str) -> None:
        self._cut = text

    def add_fit(self, fit: RouterFit) -> None:
        if self._nearest is None or fit.error < self._nearest.error:
            self._nearest = fit

    def text(self) -> str:
        """One line."""
        if self._coupled:
            return COUPLED
        if self._nearest is None:
            return self._cut
        error = self._nearest.error
        off = (
            f"{error.wrong_rows:.0%} of probe tokens go elsewhere"
            if error.wrong_rows
            else f"weights differ by {error.weight_error:.1e}"
        )
        if self._nearest.holds:
            off = "experts come in another order, which others than the experts read"
        return f"nearest: {describe_gating(self._nearest.attributes)}; {off}"
