"""Check the custom nodes of a graph against the contract before any runtime's parser sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from moe_export.errors import ContractError
from moe_export.ops import spec
from moe_export.ops.onnx_ops import node_attributes

_FLOAT = ir.DataType.FLOAT
_DTYPES = {"expert_ids": (ir.DataType.INT32, ir.DataType.INT64)}


def moe_nodes(model: ir.Model, op_type: str | None = None) -> Iterator[ir.Node]:
    """The custom nodes of the main graph in order, or those of one ``op_type``."""
    for node in model.graph:
        if node.domain == spec.DOMAIN and op_type in (None, node.op_type):
            yield node


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
        allowed = _DTYPES.get(name, (_FLOAT,))
        spec.require(
            value.dtype in allowed,
            f"{attributes.prefix}_inputs",
            f"{name} must be {' or '.join(d.name.lower() for d in allowed)}; found {value.dtype}",
        )
    shapes = {name: list(value.shape) for name, value in values.items() if value.shape is not None}
    if len(shapes) < len(values):
        return
    if not all(_is_known(shape) for shape in shapes.values()):
        for name, free_axes in _FREE_AXES.items():
            for axis in free_axes if len(shapes.get(name, ())) == 2 else ():
                shapes[name][axis] = 1
    known = {
        n: tuple(d for d in s if isinstance(d, int)) for n, s in shapes.items() if _is_known(s)
    }
    if len(known) == len(shapes):
        attributes.check_shapes(known)


# Numbers of tokens, and of experts per token, are often symbols; runtimes check them again.
_FREE_AXES = {"x": (0,), "logits": (0,), "expert_ids": (0, 1), "expert_weights": (0, 1)}


def _is_known(shape: Sequence[object]) -> bool:
    return all(isinstance(size, int) for size in shape)
