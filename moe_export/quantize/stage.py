"""Stage 6: choose how each layer's expert weights are stored, and round them when they are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from moe_export.errors import UsageError
from moe_export.lower.expert_tensor import Array, ExpertTensor, read_expert
from moe_export.lower.stage import LoweredModel
from moe_export.lower.stored_weights import (
    ExpertAttributes,
    WeightReplacer,
    expert_nodes,
    stored_parts,
    stored_tensor,
)
from moe_export.ops.contract import check_model
from moe_export.ops.nodes import PATH_KEY
from moe_export.ops.storage import ExpertMatrix, WeightStorage
from moe_export.plan import BuildPlan
from moe_export.progress import Progress
from moe_export.quantize.matrix import quantize_matrix, stores_exactly
from moe_export.quantize.mxfp4 import MXFP4

# What a checkpoint may have stored its weights in, the narrowest first.
_SOURCE_STORAGES = (MXFP4, WeightStorage("bf16"), WeightStorage("fp16"))
_WEIGHT_DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def quantize(
    lowered: LoweredModel, plan: BuildPlan, progress: Progress, keep: Collection[str] = ()
) -> LoweredModel:
    """Store expert weights as the plan says; they are rounded when they are read or written.

    Args:
        lowered: The model; its graph stays as it is.
        plan: Gives the type, the block and whether there are zero points.
        progress: Moves a bar.
        keep: Paths of layers that stay in float32.

    Returns:
        The model with a graph of its own. Its tensors are computed from those of ``lowered``.

    Raises:
        UsageError: a layer's weights cannot be stored so.
    """
    if plan.expert_weights == "fp32":
        return lowered
    model = lowered.model.clone()
    replacer = WeightReplacer(model.graph)
    nodes = list(expert_nodes(model))
    for node, attributes in progress.track(nodes, "expert weights"):
        if node.metadata_props[PATH_KEY] in keep:
            continue
        storage = _choose_storage(node, attributes, plan)
        if storage.weight_type == "fp32":
            continue
        tensors = {
            matrix.prefix: _quantized(
                _weight(node, attributes, matrix),
                storage,
                storage.shapes(attributes.num_experts, matrix),
            )
            for matrix in attributes.matrices
        }
        replacer.replace(node, attributes, storage, tensors)
    RemoveUnusedNodesPass()(model)
    check_model(model)
    return dataclasses.replace(lowered, model=model)


def _choose_storage(node: ir.Node, attributes: ExpertAttributes, plan: BuildPlan) -> WeightStorage:
    if plan.expert_weights == "source":
        if plan.runs_on_gpu:
            return WeightStorage(plan.dtype or "fp32")
        return _source_storage(node, attributes)
    if plan.expert_weights == "int4":
        return WeightStorage("int4", plan.int4_block, plan.zero_points)
    if plan.expert_weights != "mxfp4":
        return WeightStorage(plan.expert_weights)
    # Refused when it is written at the latest: what the first expert shows is said before.
    for matrix in attributes.matrices:
        _quantize_expert(_weight(node, attributes, matrix), MXFP4, 0)
    return MXFP4


def _source_storage(node: ir.Node, attributes: ExpertAttributes) -> WeightStorage:
    """The narrowest storage that holds a node's weights without rounding."""
    weights = [_weight(node, attributes, matrix) for matrix in attributes.matrices]
    for storage in _SOURCE_STORAGES:
        every = ((weight, e) for e in range(attributes.num_experts) for weight in weights)
        if all(stores_exactly(storage, read_expert(w.tensor, e)) for w, e in every):
            return storage
    return WeightStorage()


@dataclass(frozen=True)
class _FloatWeight:
    """A weight ``[E, N, K]`` in float32, and what to call it."""

    name: str
    tensor: ir.TensorProtocol


def _weight(node: ir.Node, attributes: ExpertAttributes, matrix: ExpertMatrix) -> _FloatWeight:
    value = stored_parts(node, attributes, matrix)["weight"]
    return _FloatWeight(f"{node.name}: {matrix.prefix}weight", stored_tensor(value))


def _quantized(
    weight: _FloatWeight, storage: WeightStorage, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, ExpertTensor]:
    """A matrix's parts by name, each computed expert by expert."""

    # The parts of an expert are read one after the other, and computed together.
    @lru_cache(maxsize=1)
    def parts(expert: int) -> dict[str, Array]:
        return _quantize_expert(weight, storage, expert)

    def tensor(part: str) -> ExpertTensor:
        dtype = _dtype(storage, part)
        return ExpertTensor(lambda expert: parts(expert)[part], dtype, shapes[part], None)

    return {part: tensor(part) for part in shapes}


def _quantize_expert(weight: _FloatWeight, storage: WeightStorage, expert: int) -> dict[str, Array]:
    try:
        return quantize_matrix(storage, read_expert(weight.tensor, expert))
    except UsageError as error:
        raise UsageError(f"{weight.name} of expert {expert}: {error}") from error


def _dtype(storage: WeightStorage, part: str) -> ir.DataType:
    if part == "weight":
        return _WEIGHT_DTYPES.get(storage.weight_type, ir.DataType.INT8)
    is_float = part == "scale" and storage.weight_type != "mxfp4"
    return ir.DataType.FLOAT if is_float else ir.DataType.INT8
