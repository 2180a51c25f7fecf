"""Cut a router out of the graph: from a value with one column per expert to ids and weights.

Rules for a cut:

1. It starts at a float value whose last axis has one element per expert.
2. Nothing else that depends on the model's inputs flows into it, but for shapes.
3. Its operators are standard ones, without subgraphs and without randomness.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from moe_export.errors import MoeExportError

# Nodes of the longest cut: the longest router known has 40.
_MAX_NODES = 200
# Starts that are tried for one layer, the farthest from the experts first.
_MAX_STARTS = 16
# Stored numbers a router may read: a mask of experts by experts is one, a projection is not.
_MAX_STORED = 1 << 20

_RANDOM = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
}  # fmt: skip


class NoCutError(MoeExportError):
    """A rule is broken; says which."""


@dataclass(frozen=True)
class RouterSlice:
    """A cut, as a model of its own.

    Attributes:
        logits: The value of the whole graph that the cut starts at, ``[..., E]``.
        model: The cut alone; its first input is ``logits``, of the others it reads shapes only.
        ids, weights: Names of its results, both ``[T, K]``.
        num_experts: E.
        top_k: K.
    """

    logits: ir.Value
    model: ir.Model
    ids: str
    weights: str
    num_experts: int
    top_k: int


def router_starts(graph: ir.Graph, ends: Sequence[ir.Value], num_experts: int) -> list[ir.Value]:
    """Values above ``ends`` that a cut may start at, the farthest first (rule 1)."""
    above: dict[ir.Node, None] = {}
    queue = list(ends)
    while queue and len(above) < _MAX_NODES:
        producer = queue.pop(0).producer()
        if producer is not None and producer not in above and not _barrier(producer):
            above[producer] = None
            queue += [value for value in producer.inputs if value is not None]
    found = [v for node in above for v in node.outputs if _has_columns(v, num_experts)]
    nearest = set(found[:_MAX_STARTS])
    return [v for node in graph for v in node.outputs if v in nearest]


def cut_router(
    model: ir.Model, logits: ir.Value, ids: ir.Value, weights: ir.Value, num_experts: int
) -> RouterSlice:
    """Cut from ``logits`` to ``ids`` and ``weights``.

    Raises:
        NoCutError: rule 2 or 3 is broken.
    """
    shape = ids.shape
    if shape is None or len(shape) != 2 or not isinstance(shape[1], int):
        raise NoCutError("the number of experts per token is not known")
    shaped = _shape_inputs(logits, [ids, weights])
    graph = ir.convenience.extract(model.graph, [logits, *shaped], [ids, weights])
    alone = ir.Model(graph, ir_version=model.ir_version)
    alone.opset_imports.update(model.opset_imports)
    return RouterSlice(logits, alone, str(ids.name), str(weights.name), num_experts, shape[1])


def _shape_inputs(logits: ir.Value, ends: Sequence[ir.Value]) -> list[ir.Value]:
    """Values outside the cut whose shapes it reads.

    Raises:
        NoCutError: rule 2 or 3 is broken, or the cut does not reach ``logits``.
    """
    inside: set[ir.Value] = set()
    nodes: set[ir.Node] = set()
    shaped: dict[ir.Value, None] = {}
    queue = list(ends)
    while queue:
        value = queue.pop()
        if value in inside:
            continue
        inside.add(value)
        if value is logits or _is_stored(value):
            continue
        node = value.producer()
        if node is None:
            raise NoCutError(f"the router reads {value.name} besides its logits")
        _check_operator(node)
        nodes.add(node)
        if len(nodes) > _MAX_NODES:
            raise NoCutError(f"the router has more than {_MAX_NODES} operators")
        inputs = [v for v in node.inputs if v is not None]
        if node.op_type in ("Shape", "Size"):
            shaped.update(dict.fromkeys(inputs))
        else:
            queue += inputs
    if logits not in inside:
        raise NoCutError("neither ids nor weights depend on the logits")
    produced = inside | {v for node in nodes for v in node.outputs}
    return [v for v in shaped if v not in produced and not v.is_initializer()]


def _is_stored(value: ir.Value) -> bool:
    if not value.is_initializer():
        return False
    if value.const_value is None or value.const_value.size > _MAX_STORED:
        raise NoCutError(f"the router multiplies by {value.name}")
    return True


def _barrier(node: ir.Node) -> bool:
    return node.domain == "moe_export" or any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for a in node.attributes.values()
    )


def _check_operator(node: ir.Node) -> None:
    if _barrier(node) or node.op_type in _RANDOM:
        raise NoCutError(f"the router has an operator {node.op_type}")


def _has_columns(value: ir.Value, columns: int) -> bool:
    shape = value.shape
    is_rows = shape is not None and len(shape) >= 2 and shape[-1] == columns
    return is_rows and value.dtype == ir.DataType.FLOAT


def ancestors(graph: ir.Graph, name: str) -> Iterator[ir.Value]:
    """The value called ``name`` and what it is computed from, the nearest first."""
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    seen: set[ir.Value] = set()
    queue = [values[name]]
    while queue:
        value = queue.pop(0)
        if value in seen:
            continue
        seen.add(value)
        yield value
        producer = value.producer()
        if producer is not None:
            queue += [v for v in producer.inputs if v is not None]
