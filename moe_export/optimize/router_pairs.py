"""What is inside a cut router: its ingredients, and the (ids, weights) pairs it could end at."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from moe_export.ops.spec import EpsilonMode
from moe_export.optimize.observation import SELECTORS, RoutingPair
from moe_export.optimize.router_fit import Ingredients
from moe_export.optimize.router_slice import RouterSlice, ancestors
from moe_export.optimize.slice_run import SliceRun
from moe_export.runners.arrays import Array

# Inner values tried besides the layer's own ids and weights, the nearest first.
_MAX_INNER_IDS = 3
_MAX_INNER_WEIGHTS = 5
_MAX_BIASES = 4


def router_pairs(part: RouterSlice, run: SliceRun, *, only_summed: bool) -> Iterator[RoutingPair]:
    """Pairs that the cut may end at: the layer's own, then inner ones.

    Inner ones serve routers that do something to the weights that the op does not know, such as
    a factor per expert. What comes after them must read the logits through them alone: compared
    with other values that depend on the logits, a weight that is rounded otherwise would show.

    Args:
        part: The cut.
        run: A run of it.
        only_summed: Whether nothing but a sum reads the layer's own ids and weights.
    """
    yield RoutingPair(part.ids, part.weights, only_summed, frozenset())
    ids = [part.ids, *_inner(part, run, part.ids, "i", _MAX_INNER_IDS)]
    weights = [part.weights, *_inner(part, run, part.weights, "f", _MAX_INNER_WEIGHTS)]
    places = itertools.product(range(len(ids)), range(len(weights)))
    for i, w in sorted(places, key=lambda place: (place[1], place[0]))[1:]:
        after = _after(part, {ids[i], weights[w]})
        if after is not None:
            yield RoutingPair(ids[i], weights[w], False, after)


def _after(part: RouterSlice, pair: set[str]) -> frozenset[str] | None:
    """Values from ``pair`` to the ends; None if one of them reads the logits past ``pair``."""
    graph = part.model.graph
    producers = {str(v.name): node for node in graph for v in node.outputs}
    queue, after = [part.ids, part.weights], set[str]()
    while queue:
        name = queue.pop()
        if name in pair or name in after:
            continue
        if name == graph.inputs[0].name:
            return None
        node = producers.get(name)
        if node is not None:
            after.add(name)
            if node.op_type not in ("Shape", "Size"):
                queue += [str(v.name) for v in node.inputs if v is not None]
    return frozenset(after)


def _inner(part: RouterSlice, run: SliceRun, end: str, kind: str, count: int) -> list[str]:
    tokens, moving = len(run.logits), moving_values(part)
    shapes = [(tokens, part.top_k), *([(tokens,)] if part.top_k == 1 else [])]
    above = [str(v.name) for v in ancestors(part.model.graph, end)][1:]
    fitting = [
        n for n in above if n in run.values and n in moving and run.values[n].shape in shapes
        and run.values[n].dtype.kind == kind
    ]  # fmt: skip
    return fitting[:count]


def moving_values(part: RouterSlice) -> set[str]:
    """Names of the values that depend on the logits by more than their shape."""
    moving = {str(part.model.graph.inputs[0].name)}
    for node in part.model.graph:
        names = {str(value.name) for value in node.inputs if value is not None}
        if names & moving and node.op_type not in ("Shape", "Size"):
            moving.update(str(value.name) for value in node.outputs)
    return moving


def ingredients(part: RouterSlice, run: SliceRun) -> Ingredients:
    """Numbers, vectors and counts that do not depend on the logits."""
    graph, moving = part.model.graph, moving_values(part)
    fixed = dict(_stored(graph)) | {n: a for n, a in run.values.items() if n not in moving}
    floats = {name: a for name, a in fixed.items() if a.dtype == np.float32}
    biases = {n: a.reshape(-1) for n, a in floats.items() if a.size == part.num_experts}
    names = {str(v.name) for node in graph if node.op_type == "TopK" for v in node.outputs}
    counts = frozenset(run.values[name].shape[-1] for name in names & set(run.values))
    return Ingredients(
        num_experts=part.num_experts,
        top_k=part.top_k,
        biases=dict(itertools.islice(biases.items(), _MAX_BIASES)),
        scalars=frozenset(float(a.reshape(())) for a in floats.values() if a.size == 1),
        guards=frozenset(_guards(graph, floats)),
        sizes=frozenset(size for value in run.values.values() for size in value.shape),
        selections=sum(node.op_type in SELECTORS for node in graph),
        counts=counts,
    )


def _guards(graph: ir.Graph, floats: dict[str, Array]) -> Iterator[tuple[float, EpsilonMode]]:
    """Single numbers that nodes add or bound by."""
    modes: dict[str, EpsilonMode] = {"Add": "add", "Clip": "clamp", "Max": "clamp"}
    for node in graph:
        for value in node.inputs:
            if value is not None and node.op_type in modes:
                number = floats.get(str(value.name))
                if number is not None and number.size == 1:
                    yield float(number.reshape(())), modes[node.op_type]


def _stored(graph: ir.Graph) -> Iterator[tuple[str, Array]]:
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            yield name, np.asarray(value.const_value.numpy())
