"""The stored weights of the nodes that multiply with experts' matrices: read and replaced."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from moe_export.ops.nodes import moe_nodes, node_attributes
from moe_export.ops.spec import GroupedExperts, GroupedMatMul
from moe_export.ops.storage import ExpertMatrix, WeightStorage

ExpertAttributes = GroupedExperts | GroupedMatMul


def expert_nodes(model: ir.Model) -> Iterator[tuple[ir.Node, ExpertAttributes]]:
    """The nodes that hold experts' weights, with their attributes."""
    for node in list(moe_nodes(model)):
        attributes = node_attributes(node)
        if isinstance(attributes, ExpertAttributes):
            yield node, attributes


def input_values(node: ir.Node, attributes: ExpertAttributes) -> dict[str, ir.Value]:
    """A node's inputs by name."""
    values = [value for value in node.inputs if value is not None]
    return dict(zip(attributes.input_names(), values, strict=True))


def stored_parts(
    node: ir.Node, attributes: ExpertAttributes, matrix: ExpertMatrix
) -> dict[str, ir.Value]:
    """The values that hold one matrix, by part: ``weight``, ``scale`` and ``zero``."""
    values = input_values(node, attributes)
    return {part: values[matrix.prefix + part] for part in attributes.storage.parts}


def stored_tensor(value: ir.Value) -> ir.TensorProtocol:
    """The tensor of a stored weight."""
    assert value.const_value is not None  # lowering refuses weights that are computed
    return value.const_value


def stored_bytes(node: ir.Node, attributes: ExpertAttributes) -> int:
    """Bytes of a node's weights with their scales and zero points; biases are left out."""
    parts = [v for m in attributes.matrices for v in stored_parts(node, attributes, m).values()]
    return sum(stored_tensor(value).nbytes for value in parts)


class WeightReplacer:
    """Stores the matrices of nodes otherwise; nodes that share a matrix go on sharing it.

    Args:
        graph: Where the new tensors go.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[str, WeightStorage, ExpertMatrix], dict[str, ir.Value]] = {}

    def replace(
        self,
        node: ir.Node,
        attributes: ExpertAttributes,
        storage: WeightStorage,
        tensors: Mapping[str, Mapping[str, ir.TensorProtocol]],
    ) -> None:
        """Give ``node`` its matrices in another storage; old tensors stay until nothing uses them.

        Args:
            node: The node, rewritten in place.
            attributes: Its attributes until now.
            storage: How its matrices are stored from now on.
            tensors: Tensors by a matrix's prefix and by part.
        """
        values = input_values(node, attributes)
        for matrix in attributes.matrices:
            old = values[f"{matrix.prefix}weight"]
            key = str(old.name), storage, matrix
            if key not in self._made:
                stem = _stem(str(old.name), attributes.storage, storage)
                self._made[key] = self._register(stem, tensors[matrix.prefix])
            values |= {matrix.prefix + p: value for p, value in self._made[key].items()}
        new = dataclasses.replace(
            attributes,
            weight_type=storage.weight_type,
            block_size=storage.block_size,
            has_zero_point=storage.has_zero_point,
            weight_layout=storage.layout,
        )
        names = new.input_names()
        node.resize_inputs(len(names))
        for index, name in enumerate(names):
            node.replace_input_with(index, values[name])
        for attribute in ir.convenience.convert_attributes(new.to_onnx()):
            node.attributes[attribute.name] = attribute

    def _register(self, stem: str, tensors: Mapping[str, ir.TensorProtocol]) -> dict[str, ir.Value]:
        made = {}
        while stem in self._graph.initializers:
            stem += "_"
        for part, tensor in tensors.items():
            tensor.name = stem if part == "weight" else f"{stem}.{part}"
            made[part] = ir.Value(
                name=tensor.name,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()),
                const_value=tensor,
            )
            self._graph.register_initializer(made[part])
        return made


def _stem(name: str, old: WeightStorage, new: WeightStorage) -> str:
    """The name of a weight in a new storage, such as ``experts.up.int4.cpu_v1``."""
    kind = f".{new.weight_type}" if new.weight_type != old.weight_type else ""
    layout = f".{new.layout}" if new.layout != old.layout else ""
    return name + kind + layout
