"""Give every expert node its weights in the layout that the kernels read in place."""

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
from moe_export.ops.record import WeightLayout
from moe_export.ops.storage import ExpertMatrix, WeightStorage
from moe_export.pack.padded_rows import pack_padded_rows
from moe_export.pack.panels import pack_rows


def pack_weights(model: ir.Model, layout: WeightLayout = "cpu_v1") -> ir.Model:
    """A copy of a graph whose expert weights are packed, computed when they are written.

    Args:
        model: Its expert weights are row-major or packed already.
        layout: ``cpu_v1`` or ``cuda_v1``.

    Raises:
        ContractError: a node breaks the contract.
    """
    packed = model.clone()
    replacer = WeightReplacer(packed.graph)
    for node, attributes in expert_nodes(packed):
        if attributes.weight_layout != "row_major":
            continue
        tensors = {}
        storage = dataclasses.replace(attributes.storage, layout=layout)
        for matrix in attributes.matrices:
            values = stored_parts(node, attributes, matrix)
            parts = {part: stored_tensor(value) for part, value in values.items()}
            weight = pack_matrix(storage, matrix, parts, attributes.num_experts)
            tensors[matrix.prefix] = {"weight": weight}
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
    """A packed matrix, ``[E, bytes]`` int8, packed one expert at a time.

    Args:
        storage: How it is to be stored; ``parts`` hold the same row-major.
        matrix: Its sizes.
        parts: Its tensors by part: ``weight``, ``scale`` and ``zero``.
        num_experts: E.
    """
    size = storage.packed_bytes(matrix)

    def read(expert: int) -> Array:
        rows = {p: np.ascontiguousarray(read_expert(t, expert)) for p, t in parts.items()}
        kind, block = storage.weight_type, storage.block_size
        if storage.layout == "cuda_v1":
            return pack_padded_rows(kind, **rows, columns=matrix.columns, block_size=block)
        return pack_rows(kind, **rows, block_size=block, gated=matrix.gated)

    return ExpertTensor(read, ir.DataType.INT8, (num_experts, size), None)
