"""Attach bodies in standard operators to the custom nodes: the portable target."""

from __future__ import annotations

import onnx_ir as ir

from moe_export.ops.nodes import moe_nodes, node_attributes
from moe_export.ops.portable import OPSET, function_body
from moe_export.ops.spec import OpAttributes


def attach_functions(model: ir.Model) -> None:
    """Add one model-local function per op and set of attributes.

    The first body of an op has no overload name; further ones are told apart by a number.
    """
    overloads: dict[OpAttributes, str] = {}
    counts: dict[str, int] = {}
    for node in moe_nodes(model):
        attributes = node_attributes(node)
        if attributes not in overloads:
            count = counts[attributes.op_type] = counts.get(attributes.op_type, 0) + 1
            overloads[attributes] = "" if count == 1 else str(count)
            function = function_body(attributes, overloads[attributes])
            model.functions[function.identifier()] = function
        node.overload = overloads[attributes]
    model.opset_imports[""] = max(OPSET, model.opset_imports.get("", OPSET))
