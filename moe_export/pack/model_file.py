"""Write the ONNX file, its external data, and the variants of it that parity checks need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from moe_export.errors import MoeExportError
from moe_export.lower.stage import LoweredLayer, LoweredModel
from moe_export.ops.record import WeightLayout
from moe_export.pack.native_moe import use_native_moe
from moe_export.pack.packed_weights import pack_weights
from moe_export.plan import GPU_TARGETS, Target

MODEL_NAME = "model.onnx"
# The model in float32, beside one with smaller weights for as long as they are compared.
EXACT_NAME = "float32.onnx"
# A model with smaller weights, while which layers stay in float32 is sought.
ROUNDED_NAME = "rounded.onnx"

# Which packed layout a target's kernels read.
PACKED_LAYOUTS: Mapping[Target, WeightLayout] = {
    "cpu": "cpu_v1",
    **dict.fromkeys(GPU_TARGETS, "cuda_v1"),
}

# Initializers up to this size stay in the ONNX file, where shape inference can read them.
INLINE_BYTES = 1024
# Tensors in the data file begin on a page, so that runtimes map them as they are.
PAGE_BYTES = 4096


@dataclass(frozen=True)
class PackedModel:
    """The written model.

    Attributes:
        folder: Where the files are.
        lowered: What was written, its expert weights row-major.
        graph: The graph as it was written.
        name: Name of the ONNX file.
    """

    folder: Path
    lowered: LoweredModel
    graph: ir.Model
    name: str = MODEL_NAME

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.folder / self.name

    @property
    def data_path(self) -> Path:
        """Its external data."""
        return self.folder / f"{self.name}.data"

    def remove(self) -> None:
        """Delete both files."""
        self.path.unlink()
        self.data_path.unlink(missing_ok=True)  # there is none where all tensors are small


def pack(
    lowered: LoweredModel,
    folder: Path,
    target: Target = "cpu",
    name: str = MODEL_NAME,
    *,
    native: bool = False,
) -> PackedModel:
    """Write the ONNX file and its external data into ``folder``, every tensor on a page of its own.

    Args:
        lowered: The model; its graph stays as it is.
        folder: Where to write.
        target: Expert weights are packed for its kernels, or row-major if it has none.
        name: Name of the ONNX file; that of its data follows.
        native: Experts become TensorRT's own MoE layer instead of nodes for kernels.

    Raises:
        MoeExportError: the files cannot be written.
        UnsupportedModelError: ``native``, and TensorRT's layer does not take a layer.
    """
    layout = PACKED_LAYOUTS.get(target)
    if native:
        graph = use_native_moe(lowered.model)
    else:
        graph = pack_weights(lowered.model, layout) if layout else lowered.model
    packed = PackedModel(folder, lowered, graph, name)
    write_graph(packed)
    return packed


def write_graph(packed: PackedModel) -> None:
    """Write a model's graph and the tensors that it has, which other files may hold.

    Raises:
        MoeExportError: the files cannot be written.
    """
    try:
        ir.save(
            packed.graph,
            packed.path,
            external_data=packed.data_path.name,
            size_threshold_bytes=INLINE_BYTES,
            alignment=PAGE_BYTES,
            align_threshold=INLINE_BYTES,
        )
    except OSError as error:
        raise MoeExportError(f"{packed.folder} cannot be written: {error}") from error


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
    ends = {"x": layer.x, "expert_ids": layer.expert_ids, "expert_weights": layer.expert_weights}
    return _write_part(packed, ends, layer.y, name)


def write_node(packed: PackedModel, node: ir.Node, inputs: Sequence[str], name: str) -> Path:
    """Write a model of one expert node alone; weights are shared.

    Args:
        packed: The written model.
        node: The node, or the one that it was packed from.
        inputs: What to call the inputs that are not stored, in order.
        name: File name, beside the model.
    """
    given = [v for v in node.inputs if v is not None and v.const_value is None]
    ends = {new: str(value.name) for new, value in zip(inputs, given, strict=True)}
    return _write_part(packed, ends, str(node.outputs[0].name), name)


def _write_part(packed: PackedModel, inputs: Mapping[str, str], output: str, name: str) -> Path:
    """Write what lies between values of the graph as a model of its own.

    Args:
        packed: The written model.
        inputs: Names of values, by what the model's inputs are to be called.
        output: Name of the value that becomes its output ``y``.
        name: File name, beside the model.
    """
    model = ir.load(packed.path)
    graph = ir.convenience.extract(model.graph, list(inputs.values()), [output])
    for value, new_name in zip(graph.inputs, inputs, strict=True):
        value.name = new_name
        if value.shape is not None and new_name != "group_ends":
            width = "K" if new_name in ("expert_ids", "expert_weights") else value.shape[1]
            value.shape = ir.Shape(["T", width])
    graph.outputs[0].name, graph.outputs[0].shape = "y", None
    for node in graph:
        for value in node.outputs:
            value.shape = None  # the whole model's sizes
    functions = list(model.functions.values())
    ir.save(ir.Model(graph, ir_version=model.ir_version, functions=functions), packed.folder / name)
    return packed.folder / name
