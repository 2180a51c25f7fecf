"""Undo a checkpoint's transposition and interleaving once, lazily, when weights are saved."""

from __future__ import annotations

import onnx_ir as ir

from moe_export.errors import UnsupportedModelError
from moe_export.lower.expert_tensor import Array, ExpertTensor
from moe_export.ops.layout import SourceLayout
from moe_export.ops.nodes import moe_nodes, node_attributes
from moe_export.ops.onnx_ops import LAYOUT_KEY, node_layout
from moe_export.ops.spec import DOMAIN


def normalize_weights(model: ir.Model) -> None:
    """Give every expert weight the contract's row-major layout.

    Rule: an expert weight is an initializer; one that the checkpoint stores otherwise is read by
    expert nodes alone, under one layout. Its tensor becomes one that is computed when written.

    Raises:
        UnsupportedModelError: a weight is computed inside the graph, or read in two ways.
    """
    done: dict[str, SourceLayout] = {}
    for node in moe_nodes(model):
        layout, attributes = node_layout(node), node_attributes(node)
        inputs = dict(zip(attributes.input_names(), node.inputs, strict=True))
        for name in attributes.parameter_names():
            value = inputs[name]
            if value is None or value.const_value is None or value.name is None:
                raise UnsupportedModelError(
                    f"{node.name}: {name} is computed inside the graph; experts need stored weights"
                )
            if done.get(value.name, layout) != layout:
                raise UnsupportedModelError(f"{value.name} is read under two layouts at once")
            if value.name not in done and layout.changes(name):
                _normalize(value, name, layout)
            done[value.name] = layout
        node.metadata_props.pop(LAYOUT_KEY)


def _normalize(value: ir.Value, name: str, layout: SourceLayout) -> None:
    tensor = value.const_value
    if tensor is None or {node.domain for node, _ in value.uses()} != {DOMAIN}:
        raise UnsupportedModelError(f"{value.name} is read by other nodes than experts too")
    shape = layout.row_major_shape(name, tensor.shape.numpy())

    def read(expert: int) -> Array:
        stored: Array = tensor.numpy()[expert : expert + 1]
        row_major: Array = layout.to_row_major(name, stored)[0]
        return row_major

    value.const_value = ExpertTensor(read, tensor.dtype, shape, value.name)
    value.shape = ir.Shape(shape)
