"""Give every expert node its weights in the layout that the CPU kernels read in place."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from moe_export.lower.expert_tensor import Array, ExpertTensor, read_expert
from moe_export.lower.stored_weights import (
    WeightReplacer,
    expert_nodes,
    stored_parts,
    stored_tensor,
)
from moe_export.ops.contract import check_model
from moe_export.ops.storage import ExpertMatrix, WeightStorage
from moe_export.pack.panels import pack_rows


def pack_weights(model: ir.Model) -> ir.Model:
    """A copy of a graph whose expert weights are in layout ``cpu_v1``, computed when written.

    Args:
        model: Its expert weights are row-major or packed already.

    Raises:
        ContractError: a node breaks the contract.
    """
    packed = model.clone()
    replacer = WeightReplacer(packed.graph)
    for node, attributes in expert_nodes(packed):
        if attributes.weight_layout != "row_major":
            continue
        tensors = {}
        for matrix in attributes.matrices:
            values = stored_parts(node, attributes, matrix)
            parts = {part: stored_tensor(value) for part, value in values.items()}
            weight = pack_matrix(attributes.storage, matrix, parts, attributes.num_experts)
            tensors[matrix.prefix] = {"weight": weight}
        storage = dataclasses.replace(attributes.storage, layout="cpu_v1")
        replacer.replace(node, attributes, storage, tensors)
    RemoveUnusedNodesPass()(packed)
    check_model(packed)
    return packed


def pack_matrix(
    storage: WeightStorage,
    matrix: ExpertMatrix,
    parts: dict[str, ir.TensorProtocol],
    num_experts: int,
) -> ExpertTensor:
    """A matrix in layout ``cpu_v1``, ``[E, bytes]`` int8, packed one expert at a time.

    Args:
        storage: How it is stored row-major.
        matrix: Its sizes.
        parts: Its tensors by part: ``weight``, ``scale`` and ``zero``.
        num_experts: E.
    """
    size = storage.packed_bytes(matrix)

    def read(expert: int) -> Array:
        rows = {part: read_expert(tensor, expert) for part, tensor in parts.items()}
        return pack_rows(
            storage.weight_type,
            **{part: np.ascontiguousarray(array) for part, array in rows.items()},
            block_size=storage.block_size,
            gated=matrix.gated,
        )

    return ExpertTensor(read, ir.DataType.INT8, (num_experts, size), None)
