"""What is inside a cut router: its ingredients, and the (ids, weights) pairs it could end at."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from moe_export.optimize.router_fit import Ingredients
from moe_export.optimize.router_slice import RouterSlice, ancestors
from moe_export.optimize.slice_run import SliceRun
from moe_export.runners.arrays import Array

# Inner values tried besides the layer's own ids and weights, the nearest first.
_MAX_INNER_IDS = 3
_MAX_INNER_WEIGHTS = 5
_MAX_BIASES = 4


def router_pairs(part: RouterSlice, run: SliceRun) -> Iterator[tuple[str, str]]:
    """Names of ids and weights that the cut may end at: the layer's own, then inner ones.

    Inner ones serve routers that do something to the weights that the op does not know, such as
    a factor per expert.
    """
    yield part.ids, part.weights
    ids = [part.ids, *_inner(part, run, part.ids, "i", _MAX_INNER_IDS)]
    weights = [part.weights, *_inner(part, run, part.weights, "f", _MAX_INNER_WEIGHTS)]
    pairs = itertools.product(enumerate(ids), enumerate(weights))
    ordered = sorted(pairs, key=lambda pair: (pair[1][0], pair[0][0]))
    yield from ((i, w) for (_, i), (_, w) in ordered[1:])


def _inner(part: RouterSlice, run: SliceRun, end: str, kind: str, count: int) -> list[str]:
    tokens = len(run.logits)
    shapes = [(tokens, part.top_k), *([(tokens,)] if part.top_k == 1 else [])]
    above = [str(v.name) for v in ancestors(part.model.graph, end)][1:]
    fitting = [
        n for n in above if n in run.values and run.values[n].shape in shapes
        and run.values[n].dtype.kind == kind
    ]  # fmt: skip
    return fitting[:count]


def ingredients(part: RouterSlice, run: SliceRun) -> Ingredients:
    """Numbers, vectors and counts that do not depend on the logits."""
    graph = part.model.graph
    fixed = dict(_fixed_values(part, run))
    floats = {name: a for name, a in fixed.items() if a.dtype == np.float32}
    biases = {n: a.reshape(-1) for n, a in floats.items() if a.size == part.num_experts}
    names = {str(v.name) for node in graph if node.op_type == "TopK" for v in node.outputs}
    counts = frozenset(run.values[name].shape[-1] for name in names & set(run.values))
    return Ingredients(
        num_experts=part.num_experts,
        top_k=part.top_k,
        biases=dict(itertools.islice(biases.items(), _MAX_BIASES)),
        scalars=frozenset(float(a.reshape(())) for a in floats.values() if a.size == 1),
        counts=counts,
    )


def _fixed_values(part: RouterSlice, run: SliceRun) -> Iterator[tuple[str, Array]]:
    """Stored values, then computed ones that the logits have no part in."""
    graph = part.model.graph
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            yield name, np.asarray(value.const_value.numpy())
    moving: set[ir.Value] = {graph.inputs[0]}
    for node in graph:
        if any(v in moving for v in node.inputs) and node.op_type not in ("Shape", "Size"):
            moving.update(node.outputs)
            continue
        for value in node.outputs:
            if value.name in run.values:
                yield str(value.name), run.values[str(value.name)]
