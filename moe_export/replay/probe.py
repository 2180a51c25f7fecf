"""A bundle's graph with what its custom nodes read and give among its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from moe_export.lower.half_precision import HALF
from moe_export.ops.nodes import moe_nodes


@dataclass(frozen=True)
class Probe:
    """The graph and the names of what it shows.

    Attributes:
        model: The graph with its outputs.
        nodes: Its custom nodes, as they are in the bundle.
        outputs: Name of the output that shows a value, by the value's name.
    """

    model: ir.Model
    nodes: tuple[ir.Node, ...]
    outputs: Mapping[str, str]

    def to_bytes(self) -> bytes:
        """The ONNX file; its external data stays where it is."""
        written: bytes = ir.to_proto(self.model).SerializeToString()
        return written


def make_probe(path: Path) -> Probe:
    """Read a bundle's graph and let it show values; half precision is shown as float32."""
    model = ir.load(path)
    nodes = tuple(moe_nodes(model))
    graph = model.graph
    outputs: dict[str, str] = {}
    own = {value.name for value in graph.outputs}
    for value in list(_values(nodes)):
        name = str(value.name)
        if name in own or name in outputs:
            outputs.setdefault(name, name)
            continue
        outputs[name] = f"{name}.shown"
        graph.outputs.append(_shown(graph, value, outputs[name]))
    return Probe(model, nodes, outputs)


def _values(nodes: tuple[ir.Node, ...]) -> Iterator[ir.Value]:
    """What nodes read but their weights, and what they give."""
    for node in nodes:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.const_value is None:
                yield value


def _shown(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """A copy of a value, in float32 where it is in half precision."""
    is_half = value.dtype in HALF
    float32 = {"to": int(ir.DataType.FLOAT)}
    node = ir.node("Cast", [value], float32) if is_half else ir.node("Identity", [value])
    (copy,) = node.outputs
    copy.name, copy.shape = name, value.shape
    copy.type = ir.TensorType(ir.DataType.FLOAT) if is_half else value.type
    graph.append(node)
    return copy
