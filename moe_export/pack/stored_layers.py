"""How a written model stores the expert weights of each layer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import onnx_ir as ir

from moe_export.lower.half_precision import IR_DTYPES
from moe_export.lower.stored_weights import ExpertAttributes, expert_nodes, stored_bytes
from moe_export.ops.nodes import PATH_KEY
from moe_export.pack.model_file import PackedModel
from moe_export.pack.native_moe import native_nodes, native_weights


@dataclass(frozen=True)
class StoredLayer:
    """The expert weights of one call of a layer.

    Attributes:
        weight_type: Of its weights; all its products have the same.
        block_size: Columns that share a scale; 0 for none, or one per row.
        zero_points: Blocks have zero points.
        layout: Row-major, packed, or ``native``: as TensorRT's own MoE layer takes them.
        bytes: Of weights with their scales, as they are stored; biases are left out.
        float32_bytes: Of the same weights in float32, row-major.
    """

    weight_type: str
    block_size: int
    zero_points: bool
    layout: str
    bytes: int
    float32_bytes: int


def stored_layers(packed: PackedModel) -> dict[str, StoredLayer]:
    """How each layer's expert weights are stored, by its path."""
    found: dict[str, StoredLayer] = {}
    for node, attributes in expert_nodes(packed.graph):
        path, storage = node.metadata_props[PATH_KEY], attributes.storage
        size, plain = stored_bytes(node, attributes), _float32_bytes(attributes)
        if (known := found.get(path)) is not None:
            size, plain = size + known.bytes, plain + known.float32_bytes
            found[path] = dataclasses.replace(known, bytes=size, float32_bytes=plain)
            continue
        kind, block, zeros = storage.weight_type, storage.block_size, storage.has_zero_point
        found[path] = StoredLayer(kind, block, zeros, storage.layout, size, plain)
    for node in native_nodes(packed.graph):
        found[node.metadata_props[PATH_KEY]] = _native(node)
    return found


def _native(node: ir.Node) -> StoredLayer:
    weights = native_weights(node)
    kinds = {dtype: name for name, dtype in IR_DTYPES.items()}
    size, plain = sum(w.nbytes for w in weights), 4 * sum(w.size for w in weights)
    return StoredLayer(kinds[weights[0].dtype], 0, False, "native", size, plain)


def _float32_bytes(attributes: ExpertAttributes) -> int:
    per_expert = sum(matrix.rows * matrix.columns for matrix in attributes.matrices)
    return 4 * attributes.num_experts * per_expert
