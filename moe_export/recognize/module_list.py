"""The classic custom layer: a list of alike experts called in a loop behind a top-k gate.

How the gate and the loop are written does not matter: the experts' form, the routing and the gate's
attributes are each learned by running eager, and the rebuilt layer is compared with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moe_export.errors import UnsupportedModelError
from moe_export.ops import torch_ops
from moe_export.ops.spec import TopKGating
from moe_export.recognize.block import ExpertsFunction, MoeBlock, Route, lowered_layer
from moe_export.recognize.expert_form import find_expert_form
from moe_export.recognize.gating_fit import GatingFit, fit_gating
from moe_export.recognize.layer_call import layer_input
from moe_export.recognize.observe import ObservedRouting, observe_routing
from moe_export.recognize.proof import (
    check_repeatable,
    covering_rows,
    probe_inputs,
    prove_layer,
)
from moe_export.recognize.recorder import Recording
from moe_export.recognize.structure import expert_lists

_OBSERVED_ROWS = 96


def recognize_module_list(path: str, module: nn.Module, record: Recording) -> MoeBlock:
    """Describe a layer that loops over a list of experts, and prove the description.

    Args:
        path: The layer's path in the model.
        module: The layer.
        record: The eager run in which it was found.

    Raises:
        UnsupportedModelError: it is something else; says what did not fit.
    """
    where = path or "<root>"
    lists = list(expert_lists(module))
    if len(lists) != 1:
        raise UnsupportedModelError(
            f"{where} ({type(module).__name__}): expected one list of alike experts, found "
            f"{len(lists)}"
        )
    list_path, experts = lists[0]
    like = layer_input(where, module, record)
    form = find_expert_form(f"{where}.{list_path}", experts, like.shape[-1])
    stacked = form.stack(experts)
    attributes = dataclasses.replace(form.attributes, num_experts=len(experts))

    x = _distinct_rows(like)
    check_repeatable(path, module, x)
    observed = observe_routing(where, module, experts, x)
    producer, fit = _find_gate(where, module, experts, observed, x)
    route = _route(producer, fit.attributes, path)
    block = MoeBlock(
        path=path,
        kind="module list",
        module=module,
        experts=attributes,
        gating=fit.attributes,
        lowered=lowered_layer(module, path, route, attributes),
        parameters=stacked,
        route=route,
        eager_experts=_experts_function(experts),
        expert_modules=tuple(experts),
    )
    directions = producer.weight.detach() if isinstance(producer, nn.Linear) else None
    rows = covering_rows(route, len(experts), like, directions)
    return prove_layer(block, probe_inputs(like, rows))


def _distinct_rows(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    spread = float(like.std(correction=0)) or 1.0
    shape = (2, _OBSERVED_ROWS // 2) if like.dim() == 3 else (_OBSERVED_ROWS,)
    return torch.randn(*shape, like.shape[-1], generator=generator) * spread


def _find_gate(
    where: str,
    module: nn.Module,
    experts: Sequence[nn.Module],
    observed: ObservedRouting,
    x: Tensor,
) -> tuple[nn.Module, GatingFit]:
    """The submodule whose output, through some ``TopKGating``, gives the observed routing."""
    counts = observed.hit.sum(dim=1)
    if int(counts.min()) != int(counts.max()) or int(counts[0]) == 0:
        raise UnsupportedModelError(
            f"{where}: tokens are sent to {int(counts.min())} to {int(counts.max())} experts; a "
            "fixed number per token is expected here (no capacity, no expert choice)"
        )
    if int(counts[0]) == len(experts):
        raise UnsupportedModelError(
            f"{where}: every expert runs on every token: there is no sparse routing to lower"
        )
    inside = {m for expert in experts for m in expert.modules()}
    best: tuple[nn.Module, GatingFit] | None = None
    for candidate in (m for m in module.modules() if m not in inside and m is not module):
        logits = _logits(candidate, observed.record, x, len(experts))
        if logits is None:
            continue
        fit = fit_gating(logits, observed.hit, observed.weights)
        if fit.agrees:
            return candidate, fit
        if best is None or (fit.wrong_tokens, fit.error) < (best[1].wrong_tokens, best[1].error):
            best = candidate, fit
    raise UnsupportedModelError(f"{where}: {_gate_reason(best, len(experts), len(counts))}")


def _gate_reason(best: tuple[nn.Module, GatingFit] | None, num_experts: int, tokens: int) -> str:
    if best is None:
        return f"no submodule maps the layer's input to {num_experts} logits"
    gate, fit = best
    return (
        f"no top-k gating of {type(gate).__name__}'s output explains the routing: the nearest "
        f"({fit.attributes.score_function} scores, top {fit.attributes.top_k}) sends "
        f"{fit.wrong_tokens} of {tokens} tokens elsewhere, with weights off by {fit.error:.1e}"
    )


def _logits(module: nn.Module, record: Recording, x: Tensor, num_experts: int) -> Tensor | None:
    """The module's output ``[T, E]`` if it was called once, on the layer's rows."""
    calls = record.calls.get(module, [])
    if len(calls) != 1 or len(calls[0].args) != 1 or calls[0].kwargs:
        return None
    given, result = calls[0].args[0], calls[0].result
    rows = x.reshape(-1, x.shape[-1])
    if not (isinstance(given, Tensor) and isinstance(result, Tensor)):
        return None
    if result.dim() < 2 or result.shape[-1] != num_experts or given.shape[-1] != rows.shape[-1]:
        return None
    if not torch.equal(given.reshape(-1, rows.shape[-1]), rows):
        return None
    logits = result.reshape(-1, num_experts)
    return logits if logits.is_floating_point() else None


def _route(producer: nn.Module, attributes: TopKGating, path: str) -> Route:
    def route(rows: Tensor) -> tuple[Tensor, Tensor]:
        return torch_ops.top_k_gating(producer(rows), attributes, path=path)

    return route


def _experts_function(experts: Sequence[nn.Module]) -> ExpertsFunction:
    def run(x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        with torch.no_grad():
            for e, expert in enumerate(experts):
                token, slot = (expert_ids == e).nonzero(as_tuple=True)
                if len(token):
                    y.index_add_(0, token, expert(x[token]) * expert_weights[token, slot, None])
        return y

    return run
