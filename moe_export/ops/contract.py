"""Check the custom nodes of a graph against the contract before any runtime's parser sees them."""

from __future__ import annotations

import onnx_ir as ir

from moe_export.errors import ContractError
from moe_export.ops import spec
from moe_export.ops.nodes import moe_nodes, node_attributes

_FLOAT = ir.DataType.FLOAT
# What the activations may be. Expert weights and biases are float32 whatever they are.
_ACTIVATIONS = (_FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_DTYPES = {
    "logits": _ACTIVATIONS,
    "x": _ACTIVATIONS,
    "rows": _ACTIVATIONS,
    "expert_ids": (ir.DataType.INT32, ir.DataType.INT64),
    "group_ends": (ir.DataType.INT32,),
    "row_map": (ir.DataType.INT32,),
}
_BYTES = (ir.DataType.INT8,)
# Row-major weights, by weight_type; packed ones are bytes.
_WEIGHT_DTYPES = {
    "fp32": (_FLOAT,),
    "fp16": (ir.DataType.FLOAT16,),
    "bf16": (ir.DataType.BFLOAT16,),
}


def check_model(model: ir.Model) -> None:
    """Check every custom node of ``model``: attributes, inputs without gaps, types, known shapes.

    Raises:
        ContractError: names the node, the constraint and the tensor or attribute.
    """
    for node in moe_nodes(model):
        try:
            _check_node(node)
        except ContractError as error:
            raise ContractError(f"{error} (node {node.name})") from error


def _check_node(node: ir.Node) -> None:
    attributes = node_attributes(node)
    spec.check_input_count(attributes, [value is not None for value in node.inputs])
    names = attributes.input_names()
    values = dict(zip(names, (v for v in node.inputs if v is not None), strict=True))
    for name, value in values.items():
        allowed = _allowed_dtypes(name, attributes)
        spec.require(
            value.dtype in allowed,
            f"{attributes.prefix}_inputs",
            f"{name} must be {' or '.join(d.name.lower() for d in allowed)}; found {value.dtype}",
        )
    shapes = {n: list(v.shape) for n, v in values.items() if v.shape is not None}
    for group in _FREE_SIZES:
        members = [(n, axis) for n, axis in group if axis < len(shapes.get(n, ()))]
        if any(not isinstance(shapes[n][axis], int) for n, axis in members):
            for n, axis in members:
                shapes[n][axis] = 1
    known = {n: tuple(size for size in s if isinstance(size, int)) for n, s in shapes.items()}
    if all(n in known and len(known[n]) == len(shapes[n]) for n in values):
        attributes.check_shapes(known)


def _allowed_dtypes(name: str, attributes: spec.OpAttributes) -> tuple[ir.DataType, ...]:
    """Types that the input called ``name`` may have."""
    part = name.rpartition("_")[2]
    if name in attributes.parameter_names() and isinstance(
        attributes, spec.GroupedExperts | spec.GroupedMatMul
    ):
        if part == "weight":
            packed = attributes.weight_layout != "row_major"
            return _BYTES if packed else _WEIGHT_DTYPES.get(attributes.weight_type, _BYTES)
        if part == "zero" or (part == "scale" and attributes.weight_type == "mxfp4"):
            return _BYTES
    return _DTYPES.get(name, (_FLOAT,))


# Axes of one size, tokens, experts per token and rows, that is often a symbol: runtimes check it
# again.
_FREE_SIZES = (
    (("x", 0), ("logits", 0), ("expert_ids", 0), ("row_map", 0), ("expert_weights", 0)),
    (("expert_ids", 1), ("row_map", 1), ("expert_weights", 1)),
    (("rows", 0),),
)
