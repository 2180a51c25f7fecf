"""Find the MoE layers of a graph by the custom nodes that carry their paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from moe_export.errors import UnsupportedModelError
from moe_export.lower.gating_words import describe_gating
from moe_export.ops.nodes import PATH_KEY, moe_nodes, node_attributes
from moe_export.ops.spec import TopKGating
from moe_export.recognize.block import MoeBlock
from moe_export.runners.eager import call_path

# The nodes that a layer begins and ends with: one and the same, or rows are spread and collected.
_FORMS = (("GroupedExperts", "GroupedExperts"), ("ExpertDispatch", "ExpertCombine"))


@dataclass(frozen=True)
class LoweredLayer:
    """One MoE layer in the graph, by names of its values.

    Attributes:
        block: The layer in PyTorch.
        path: Its path in the model; with ``#2`` and so on where the model calls it again.
        node: The node that computes its result: ``GroupedExperts`` or ``ExpertCombine``.
        x, expert_ids, expert_weights, y: Names of the values around its experts.
        gating: Attributes of its ``TopKGating``; None where its router is standard operators.
        routing: Its router in words, or why it stays standard operators.
    """

    block: MoeBlock
    path: str
    node: str
    x: str
    expert_ids: str
    expert_weights: str
    y: str
    gating: TopKGating | None = None
    routing: str = ""

    def describe(self) -> dict[str, Any]:
        """Facts for people and for the manifest."""
        return {
            **self.block.describe(),
            "path": self.path,
            "router": self.gating.op_type if self.gating else "standard operators",
            "gating": self.gating.to_onnx() if self.gating else None,
            "routing": self.routing,
        }


def find_layers(model: ir.Model, blocks: Sequence[MoeBlock]) -> tuple[LoweredLayer, ...]:
    """Name every custom node uniquely and find each block's places in the graph.

    Returns:
        One for each call of a layer, those of the layer that runs first first.

    Raises:
        UnsupportedModelError: a block's experts are not in the graph.
    """
    nodes: dict[str, list[ir.Node]] = {}
    for node in moe_nodes(model):
        nodes.setdefault(node.metadata_props[PATH_KEY], []).append(node)
    missing = [block.path for block in blocks if block.path not in nodes]
    if missing:
        raise UnsupportedModelError(
            f"{', '.join(missing)}: the layer's result is not used by the model's outputs"
        )
    by_path = {block.path: block for block in blocks}
    return tuple(
        _layer(by_path[path], call_path(path, number), members)
        for path, found in nodes.items()
        for number, members in enumerate(_calls(path, found), 1)
    )


def _calls(path: str, nodes: Sequence[ir.Node]) -> list[Sequence[ir.Node]]:
    """The nodes of each call of a layer; tracing leaves them one call after the other."""
    count = max(1, sum(node.op_type in {end for _, end in _FORMS} for node in nodes))
    size = len(nodes) // count
    calls = [nodes[start : start + size] for start in range(0, size * count, size)]
    kinds = [node.op_type for node in nodes]
    if kinds != kinds[:size] * count:
        raise UnsupportedModelError(
            f"{path}: it is called {count} times, and leaves other nodes each time: "
            f"{', '.join(kinds)}"
        )
    return calls


def _layer(block: MoeBlock, path: str, nodes: Sequence[ir.Node]) -> LoweredLayer:
    counts: Counter[str] = Counter()
    for node in nodes:
        node.metadata_props[PATH_KEY] = path
        name = f"{path or 'root'}/{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}.{counts[name]}"
    first, last = expert_ends(path, nodes)
    x, ids = (_name(value) for value in first.inputs[:2])
    gating = [a for n in nodes if isinstance(a := node_attributes(n), TopKGating)]
    return LoweredLayer(
        block=block,
        path=path,
        node=str(last.name),
        x=x,
        expert_ids=ids,
        expert_weights=_name(last.inputs[2]),
        y=_name(last.outputs[0]),
        gating=gating[0] if gating else None,
        routing=describe_gating(gating[0]) if gating else "",
    )


def expert_ends(path: str, nodes: Sequence[ir.Node]) -> tuple[ir.Node, ir.Node]:
    """The nodes of one call of a layer that read its ids and its weights; both may be one.

    Raises:
        UnsupportedModelError: there is none, or one without the other.
    """
    pairs = []
    for begin, end in _FORMS:
        begins = [node for node in nodes if node.op_type == begin]
        ends = [node for node in nodes if node.op_type == end]
        if len(begins) != len(ends):
            raise UnsupportedModelError(
                f"{path}: {len(begins)} {begin} and {len(ends)} {end} nodes: the layer's rows are "
                "not collected where they were spread"
            )
        pairs += list(zip(begins, ends, strict=True))
    if not pairs:
        raise UnsupportedModelError(
            f"{path}: the layer's result is not used by the model's outputs"
        )
    return pairs[0]


def _name(value: ir.Value | None) -> str:
    assert value is not None  # exported values have names
    assert value.name
    return value.name
