"""Undo a checkpoint's transposition and interleaving once, lazily, when weights are saved."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch

from moe_export.errors import UnsupportedModelError
from moe_export.ops.contract import moe_nodes
from moe_export.ops.onnx_ops import LAYOUT_KEY, node_attributes, node_layout
from moe_export.ops.torch_ops import SourceLayout


def normalize_weights(model: ir.Model) -> None:
    """Give every expert weight the contract's row-major layout.

    Rule: an expert weight is an initializer, read by expert nodes only and under one layout; its
    tensor becomes one that is computed when it is written.

    Raises:
        UnsupportedModelError: a weight is computed inside the graph, or read in two ways.
    """
    done: dict[str, SourceLayout] = {}
    for node in moe_nodes(model, "GroupedExperts"):
        layout = node_layout(node)
        names = node_attributes(node).input_names()
        for name, value in list(zip(names, node.inputs, strict=True))[3:]:
            if value is None or value.const_value is None or value.name is None:
                raise UnsupportedModelError(
                    f"{node.name}: {name} is computed inside the graph; experts need stored weights"
                )
            if done.setdefault(value.name, layout) != layout:
                raise UnsupportedModelError(f"{value.name} is stored in two layouts at once")
            if value.const_value is not _normalized(value, name, layout):
                _replace(model, value, name, layout)
        node.metadata_props.pop(LAYOUT_KEY)


_MARK = "moe_export.row_major"


def _normalized(value: ir.Value, name: str, layout: SourceLayout) -> ir.TensorProtocol | None:
    """The value's tensor if nothing is left to do to it."""
    plain = layout == SourceLayout() or (not layout.interleaved and "weight" not in name)
    return value.const_value if plain or _MARK in value.metadata_props else None


def _replace(model: ir.Model, value: ir.Value, name: str, layout: SourceLayout) -> None:
    tensor = value.const_value
    if tensor is None:
        return
    users = {node.domain for node, _ in value.uses()}
    if users != {"moe_export"}:
        raise UnsupportedModelError(
            f"{value.name} is stored {layout} and read by other nodes than experts too"
        )
    value.const_value = ir.LazyTensor(
        _loader(tensor, name, layout),
        dtype=tensor.dtype,
        shape=ir.Shape(layout.row_major_shape(name, list(tensor.shape.numpy()))),
        name=value.name,
    )
    value.shape = value.const_value.shape
    value.metadata_props[_MARK] = "1"
    del model


def _loader(
    tensor: ir.TensorProtocol, name: str, layout: SourceLayout
) -> Callable[[], ir.TensorProtocol]:
    def load() -> ir.TensorProtocol:
        stored = torch.from_numpy(tensor.numpy())
        return ir.tensor(layout.to_row_major(name, stored).contiguous().numpy(), name=tensor.name)

    return load
