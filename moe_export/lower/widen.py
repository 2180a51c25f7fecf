"""A graph in float32 that computes what one in half precision means, so that a CPU can run it.

Its weights are the rounded ones; what is left out is how half precision rounds between operators,
and the numbers of the model's own code, such as the scale of attention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from moe_export.lower.expert_tensor import Array, ExpertTensor, read_expert
from moe_export.lower.half_precision import HALF
from moe_export.lower.stage import LoweredModel
from moe_export.lower.stored_weights import (
    ExpertAttributes,
    WeightReplacer,
    expert_nodes,
    stored_parts,
    stored_tensor,
)
from moe_export.ops.contract import check_model
from moe_export.ops.dequantize import dequantize
from moe_export.ops.storage import ExpertMatrix, WeightStorage

_FLOAT = ir.DataType.FLOAT
# Attributes that hold a type.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "softmax_precision")


def widen(lowered: LoweredModel, numbers: Collection[float] = ()) -> LoweredModel:
    """The model with float32 in place of half precision, and experts' weights as float32.

    Args:
        lowered: Its graph stays as it is; experts' weights are row-major, in any type.
        numbers: Those in the model's code; a constant that is one of them rounded becomes it.

    Raises:
        ContractError: a node breaks the contract.
    """
    model = lowered.model.clone()
    _dequantize_experts(model)
    for graph in model.graphs():
        for value in _values(graph):
            if value.dtype in HALF:
                value.type = ir.TensorType(_FLOAT)
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in HALF:
                value.const_value = _float_tensor(value.const_value, numbers)
        for node in graph:
            _widen_attributes(node, numbers)
    check_model(model)
    return dataclasses.replace(lowered, model=model)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _widen_attributes(node: ir.Node, numbers: Collection[float]) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in HALF:
            node.attributes[name] = ir.AttrTensor(name, _float_tensor(attribute.value, numbers))
        if name in _TYPE_ATTRIBUTES and attribute.value in HALF:
            node.attributes[name] = ir.AttrInt64(name, int(_FLOAT))


def _float_tensor(tensor: ir.TensorProtocol, numbers: Collection[float]) -> ir.TensorProtocol:
    """The same numbers in float32, computed when they are read."""

    def read() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float32))

    if tensor.size == 1:
        kind = tensor.dtype.numpy()
        exact = {np.float32(n) for n in numbers if np.float32(n).astype(kind) == tensor.numpy()}
        if len(exact) == 1:
            return ir.tensor(np.full(tensor.shape.numpy(), exact.pop()), name=tensor.name)
    return ir.LazyTensor(read, dtype=_FLOAT, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)


def _dequantize_experts(model: ir.Model) -> None:
    """Store experts' weights as the float32 numbers that they stand for."""
    replacer = WeightReplacer(model.graph)
    for node, attributes in list(expert_nodes(model)):
        if attributes.storage != WeightStorage():
            tensors = {
                matrix.prefix: {"weight": _dequantized(node, attributes, matrix)}
                for matrix in attributes.matrices
            }
            replacer.replace(node, attributes, WeightStorage(), tensors)
    RemoveUnusedNodesPass()(model)


def _dequantized(node: ir.Node, attributes: ExpertAttributes, matrix: ExpertMatrix) -> ExpertTensor:
    values = stored_parts(node, attributes, matrix)
    parts = {part: stored_tensor(value) for part, value in values.items()}

    def read(expert: int) -> Array:
        stored = {part: read_expert(tensor, expert) for part, tensor in parts.items()}
        return dequantize(attributes.storage, stored, matrix.columns)

    (shape,) = WeightStorage().shapes(attributes.num_experts, matrix).values()
    return ExpertTensor(read, _FLOAT, shape, None)
