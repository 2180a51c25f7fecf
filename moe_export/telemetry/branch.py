"""Append nodes to a graph, each with a name of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from moe_export.runners.arrays import Array


class Branch:
    """Nodes at the end of a graph that compute something beside what the graph is for.

    Args:
        graph: Gets the nodes.
        prefix: Begins their names.
    """

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self._graph, self._prefix, self._count = graph, prefix, 0

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        **attributes: int | str | ir.DataType | ir.TensorProtocol,
    ) -> ir.Value:
        """Append a node of one output, and return that."""
        self._count += 1
        node = ir.node(op_type, inputs, attributes, name=f"{self._prefix}/{op_type}.{self._count}")
        node.outputs[0].name = f"{node.name}/out"
        self._graph.append(node)
        return node.outputs[0]

    def constant(self, array: Array | np.generic) -> ir.Value:
        """A stored tensor."""
        return self.add("Constant", [], value=ir.tensor(np.asarray(array)))

    def ints(self, *values: int) -> ir.Value:
        """Integers, rank 1."""
        return self.constant(np.array(values, np.int64))

    def zeros(self, size: int, dtype: type[np.generic]) -> ir.Value:
        """``[size]`` zeros that take no space in the file."""
        return self.add("ConstantOfShape", [self.ints(size)], value=ir.tensor(np.zeros(1, dtype)))

    def flatten(self, value: ir.Value) -> ir.Value:
        """``value`` in rank 1."""
        return self.add("Reshape", [value, self.ints(-1)])

    def cut(self, value: ir.Value, count: int) -> ir.Value:
        """The first ``count`` of a value of rank 1."""
        return self.add("Slice", [value, self.ints(0), self.ints(count), self.ints(0)])

    def count_rows(self, value: ir.Value) -> ir.Value:
        """``[1]`` float32: the size of the first axis, at least 1."""
        rows = self.add("Shape", [value], start=0, end=1)
        return self.add(
            "Max", [self.add("Cast", [rows], to=ir.DataType.FLOAT), self.constant(np.float32(1))]
        )
