"""Replace routers by ``TopKGating`` where they do the same, whatever operators they are made of.

Rules:

1. A cut from some value ``[..., E]`` to ids and weights (``router_slice``), the longest first.
2. Every value inside keeps the tokens apart (``row_independence``).
3. Some attributes of the op explain what the cut does on probe logits, and on further ones that
   they were not fitted on (``router_fit``, ``confirm``), on which every case inside the router is
   met (``coverage``).
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
from moe_export.ops.spec import DOMAIN, TopKGating
from moe_export.optimize.confirm import Confirmation, confirm
from moe_export.optimize.coverage import Coverage
from moe_export.optimize.observation import observe
from moe_export.optimize.probes import draw_probes
from moe_export.optimize.replace_router import FoundRouter, layer_nodes, replace_router
from moe_export.optimize.router_fit import RouterFit, fit_router
from moe_export.optimize.router_pairs import ingredients, moving_values, router_pairs
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
    if ids.shape is not None and len(ids.shape) == 2 and ids.shape[1] == num_experts:
        return dataclasses.replace(layer, routing="every token goes to every expert")
    reasons = _Reasons()
    for start in router_starts(model.graph, [ids, weights], num_experts):
        try:
            part = cut_router(model, start, ids, weights, num_experts)
            found = _explain(part, known, reasons, only_summed=_only_summed(model, layer))
        except NoCutError as error:
            reasons.add(str(error))
            continue
        if found is not None:
            if found.attributes not in known:
                known.insert(0, found.attributes)
            return replace_router(model, layer, found)
    return dataclasses.replace(layer, routing=reasons.text())


def _explain(
    part: RouterSlice, known: Sequence[TopKGating], reasons: _Reasons, *, only_summed: bool
) -> FoundRouter | None:
    """The first pair of the cut that some attributes explain."""
    runner = SliceRunner(part)
    probes = draw_probes(part.num_experts, seed=0)
    run = runner.run(probes.logits)
    coupled, moving, parts = _coupled(part, runner), moving_values(part), ingredients(part, run)
    for pair in router_pairs(part, run, only_summed=only_summed):
        ends = (pair.ids, pair.weights)
        above = {str(v.name) for end in ends for v in ancestors(part.model.graph, end)}
        if above & coupled:
            reasons.add(COUPLED)
            continue
        seen = observe(part, run, probes, pair)
        fit = fit_router(seen, parts, known)
        confirmed = None
        if fit is not None and fit.holds:
            coverage = Coverage(part, above & moving, fit.attributes)
            coverage.add(run, seen)
            confirmed = confirm(part, runner, pair, fit, parts, coverage)
            fit = confirmed.fit
            in_order = confirmed.same_order or pair.only_summed
            if fit.holds and in_order and confirmed.covered:
                return FoundRouter(part.logits, pair, fit.attributes, fit.bias, part.num_experts)
        if pair.own:
            reasons.add_fit(fit, confirmed)
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
    first, last = expert_ends(layer.path, layer_nodes(model, layer.path))
    if first is not last:
        return False
    queue = [value for value in first.inputs[1:3] if value is not None]
    seen = set(queue)
    while queue:
        value = queue.pop()
        if value.is_graph_output():
            return False
        for user, index in value.uses():
            if user is first and index in (1, 2):
                continue
            if user.domain == DOMAIN:
                return False
            # The router's own operators, such as the one that gathers weights by ids.
            queue += [v for v in user.outputs if v not in seen]
            seen.update(user.outputs)
    return True


class _Reasons:
    """Why no cut was fused: what was said of the nearest fit, else of the first cut."""

    def __init__(self) -> None:
        self._nearest: RouterFit | None = None
        self._texts: list[str] = []

    def add(self, text: str) -> None:
        """A reason that has nothing to do with a fit."""
        self._texts.append(text)

    def add_fit(self, fit: RouterFit | None, confirmed: Confirmation | None) -> None:
        """A fit that does not hold, or not for certain."""
        if fit is None:
            self.add("no rule chooses nearly the same experts")
        elif self._nearest is None or fit.error < self._nearest.error:
            self._nearest = fit
            self._texts.insert(
                0, f"nearest: {describe_gating(fit.attributes)}; {_off(fit, confirmed)}"
            )

    def text(self) -> str:
        """One line."""
        if COUPLED in self._texts:
            return COUPLED
        return self._texts[0] if self._texts else "no value has one column per expert"


def _off(fit: RouterFit, confirmed: Confirmation | None) -> str:
    """What is wrong with a fit."""
    if fit.error.wrong_rows:
        return f"{max(fit.error.wrong_rows, 0.01):.0%} of probe tokens go elsewhere"
    if not fit.holds:
        return f"weights differ by {fit.error.weight_error:.1e}"
    if confirmed is not None and not confirmed.covered:
        return "some case inside was never met on the probes"
    return "experts come in another order, which others than the experts read"
