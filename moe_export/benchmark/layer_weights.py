"""What one expert of each layer costs: bytes to read, operations for a row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from moe_export.ops.nodes import PATH_KEY, moe_nodes, node_attributes
from moe_export.ops.spec import GroupedExperts, GroupedMatMul


@dataclass(frozen=True)
class LayerWeights:
    """The stored experts of one call of a layer.

    Attributes:
        path: The layer's path.
        expert_bytes: Of one expert, with its biases and scales, as they are stored.
        row_operations: Multiplications and additions of one row through one expert's matrices.
        weight_type: As the contract names it.
    """

    path: str
    expert_bytes: float = 0.0
    row_operations: int = 0
    weight_type: str = "fp32"


def read_layer_weights(path: Path) -> dict[str, LayerWeights]:
    """The layers of a model's file by path; weights themselves are not read."""
    found: dict[str, LayerWeights] = {}
    for node in moe_nodes(ir.load(path)):
        attributes = node_attributes(node)
        if not isinstance(attributes, GroupedExperts | GroupedMatMul):
            continue
        inputs = dict(zip(attributes.input_names(), node.inputs, strict=True))
        stored = [inputs[name] for name in attributes.parameter_names()]
        size = sum(v.const_value.nbytes for v in stored if v is not None and v.const_value)
        layer = node.metadata_props[PATH_KEY]
        before = found.get(layer, LayerWeights(layer))
        found[layer] = LayerWeights(
            layer,
            before.expert_bytes + size / attributes.num_experts,
            before.row_operations + _operations(attributes),
            attributes.weight_type,
        )
    return found


def _operations(attributes: GroupedExperts | GroupedMatMul) -> int:
    if isinstance(attributes, GroupedMatMul):
        return 2 * attributes.in_features * attributes.out_features
    return 2 * attributes.hidden_size * (attributes.up_rows + attributes.intermediate_size)
