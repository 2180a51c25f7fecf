"""Write the ONNX file, its external data, and the variants of it that parity checks need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from moe_export.errors import MoeExportError
from moe_export.lower.stage import LoweredLayer, LoweredModel

MODEL_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"

# Initializers up to this size stay in the ONNX file, where shape inference can read them.
_INLINE_BYTES = 1024


@dataclass(frozen=True)
class PackedModel:
    """The written model.

    Attributes:
        folder: Where the files are.
        lowered: What was written.
    """

    folder: Path
    lowered: LoweredModel

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.folder / MODEL_NAME


def pack(lowered: LoweredModel, folder: Path) -> PackedModel:
    """Write ``model.onnx`` and ``model.onnx.data`` into ``folder``.

    Raises:
        MoeExportError: the files cannot be written.
    """
    try:
        ir.save(
            lowered.model,
            folder / MODEL_NAME,
            external_data=DATA_NAME,
            size_threshold_bytes=_INLINE_BYTES,
        )
    except OSError as error:
        raise MoeExportError(f"{folder} cannot be written: {error}") from error
    return PackedModel(folder, lowered)


def write_probe(packed: PackedModel, values: Sequence[str], name: str) -> Path:
    """Write a copy of the model whose outputs are ``values`` besides its own; weights are shared.

    Args:
        packed: The written model.
        values: Names of intermediate values.
        name: File name, beside the model.
    """
    model = ir.load(packed.path)
    by_name = {v.name: v for node in model.graph for v in node.outputs if v.name}
    by_name |= {v.name: v for v in model.graph.inputs if v.name}
    present = {v.name for v in model.graph.outputs}
    for value in dict.fromkeys(values):
        if value not in present:
            model.graph.outputs.append(_as_output(model, by_name[value]))
    ir.save(model, packed.folder / name)
    return packed.folder / name


def _as_output(model: ir.Model, value: ir.Value) -> ir.Value:
    """The value itself, or a copy of it where it is an input of the graph."""
    if not value.is_graph_input():
        return value
    node = ir.node("Identity", [value])
    node.outputs[0].name, node.outputs[0].type = f"{value.name}_copy", value.type
    node.outputs[0].shape = value.shape
    model.graph.append(node)
    return node.outputs[0]


def write_experts(packed: PackedModel, layer: LoweredLayer, name: str) -> Path:
    """Write a model of one layer's experts alone, its routing an input; weights are shared.

    Args:
        packed: The written model.
        layer: The layer: all nodes between its routing and its result are written.
        name: File name, beside the model.
    """
    model = ir.load(packed.path)
    ends = {"x": layer.x, "expert_ids": layer.expert_ids, "expert_weights": layer.expert_weights}
    graph = ir.convenience.extract(model.graph, list(ends.values()), [layer.y])
    for value, new_name in zip(graph.inputs, ends, strict=True):
        value.name = new_name
        if value.shape is not None:
            width = value.shape[1] if new_name == "x" else "K"
            value.shape = ir.Shape(["T", width])
    graph.outputs[0].name, graph.outputs[0].shape = "y", None
    for node in graph:
        for value in node.outputs:
            value.shape = None  # the whole model's sizes
    functions = list(model.functions.values())
    ir.save(ir.Model(graph, ir_version=model.ir_version, functions=functions), packed.folder / name)
    return packed.folder / name
