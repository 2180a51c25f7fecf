"""Write ONNX nodes, and bodies of ``Scan``, each value with a name of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from moe_export.errors import UnsupportedModelError
from moe_export.runners.arrays import Array

Attribute = int | Sequence[int] | ir.TensorProtocol | ir.Graph


class Nodes:
    """Nodes in the order in which they are added.

    Args:
        prefix: Begins the names of nodes and values; unlike that of any graph around, so that no
            value hides another.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[ir.Node] = []

    def add(self, op_type: str, *inputs: ir.Value | None, **attributes: Attribute) -> ir.Value:
        """Append a node of one output, and return that."""
        return self.add_many(op_type, 1, *inputs, **attributes)[0]

    def add_many(
        self, op_type: str, num_outputs: int, *inputs: ir.Value | None, **attributes: Attribute
    ) -> Sequence[ir.Value]:
        """Append a node, and return its outputs."""
        name = f"{self.prefix}/{op_type}.{len(self.nodes)}"
        node = ir.node(op_type, inputs, attributes, num_outputs=num_outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}/out.{index}"
        self.nodes.append(node)
        return node.outputs

    def constant(self, array: Array | np.generic) -> ir.Value:
        """A stored tensor."""
        return self.add("Constant", value=ir.tensor(np.asarray(array)))

    def ints(self, *values: int) -> ir.Value:
        """Integers, rank 1: axes, sizes, bounds."""
        return self.constant(np.array(values, np.int64))


class ScanBody(Nodes):
    """What runs once per turn of a ``Scan``: states and slices in, states and slices out."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self._inputs: list[ir.Value] = []

    def input(self, name: str, *sizes: int | str) -> ir.Value:
        """The next state or slice, float32 of these sizes; states come first."""
        value = _float(f"{self.prefix}/{name}", sizes)
        self._inputs.append(value)
        return value

    def finish(self, *outputs: tuple[ir.Value, Sequence[int | str]]) -> ir.Graph:
        """The body; ``outputs`` are the new states, then the slices, each with its sizes."""
        for value, sizes in outputs:
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(sizes)
        values = [value for value, _ in outputs]
        return ir.Graph(self._inputs, values, nodes=self.nodes, name=self.prefix)


def _float(name: str, sizes: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(sizes))


def static_sizes(value: ir.Value, first_axis: int) -> list[int]:
    """The sizes of ``value`` from ``first_axis`` on.

    Raises:
        UnsupportedModelError: one of them is not known.
    """
    sizes = list(value.shape or ())[first_axis:]
    known = [size for size in sizes if isinstance(size, int)]
    if not known or len(known) < len(sizes):
        raise UnsupportedModelError(
            f"{value.name} has the shape {value.shape}: heads and widths must have fixed sizes"
        )
    return known
