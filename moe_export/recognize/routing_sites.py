"""Find the modules that route: experts below them, and a selection by value while they run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from moe_export.recognize.recorder import Recording, called_in_chain
from moe_export.recognize.structure import holds_experts

# A layer of experts has matrices of a gate, of up and of down projections.
_FEWEST_MATRICES = 3
# Running modules around a selection that are looked at.
_LEVELS = 3


@dataclass(frozen=True)
class RoutingSite:
    """A module that looks like an MoE layer, and the operators it selected with."""

    path: str
    module: nn.Module
    operators: tuple[str, ...]


def find_routing_sites(
    model: nn.Module, record: Recording, handled: Iterable[nn.Module]
) -> list[RoutingSite]:
    """Modules that route among experts that nothing has accounted for yet, innermost only.

    A site is the innermost running module of a selection with unaccounted experts below it.

    Args:
        model: The model that ``record`` was made from.
        record: One eager run.
        handled: Modules whose experts are accounted for.
    """
    skip, chains = set(handled), _chains(model, record)
    paths = {module: path for path, module in model.named_modules()}
    found: dict[nn.Module, list[str]] = {}
    for operator, stack in record.selections:
        if skip.intersection(stack):
            continue
        site = next((m for m in reversed(stack) if holds_experts(m, skip, chains)), None)
        if site is not None:
            found.setdefault(site, []).append(operator)
    outer = {m for m in found for other in found if other is not m and other in set(m.modules())}
    return [
        RoutingSite(paths[m], m, tuple(dict.fromkeys(operators)))
        for m, operators in found.items()
        if m not in outer
    ]


def find_quiet_sites(
    model: nn.Module,
    record: Recording,
    handled: Iterable[nn.Module],
    *,
    around_selections: bool = True,
) -> list[RoutingSite]:
    """Other running modules that may be MoE layers, inner ones first.

    They may run all their experts, or fixed ones, or hold them in a way that shows in numbers only:
    without more evidence, a module that turns out to be something else is no error.

    Args:
        model: The model that ``record`` was made from.
        record: One eager run.
        handled: Modules that are MoE layers already.
        around_selections: Whether modules without anything like experts count too, because they
            are near a selection by value. Attention that chooses its keys is such a module.
    """
    skip, chains = set(handled), _chains(model, record)
    inside = {m for s in skip for m in s.modules()}
    paths = {module: path for path, module in model.named_modules()}
    holding = {m for m in paths if m in record.calls and holds_experts(m, skip, chains)}
    found = {m: None for m in paths if m in holding and not holding.intersection(_below(m))}
    for _, stack in record.selections if around_selections else ():
        near = [m for m in reversed(stack) if _count_matrices(m) >= _FEWEST_MATRICES]
        found |= dict.fromkeys(near[:_LEVELS])
    return [
        RoutingSite(paths[m], m, ())
        for m in found
        if m in paths and m not in inside and not skip.intersection(m.modules())
    ]


def _below(module: nn.Module) -> Iterator[nn.Module]:
    return (m for m in module.modules() if m is not module)


def _count_matrices(module: nn.Module) -> int:
    return sum(p.dim() >= 2 for p in module.parameters())


def _chains(model: nn.Module, record: Recording) -> set[nn.Module]:
    lists = [m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.ModuleDict))]
    return {m for m in lists if called_in_chain(record, list(m.children()))}
