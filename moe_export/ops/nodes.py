"""The custom nodes of a graph, read without PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from moe_export.ops import spec

# Metadata that a node carries from tracing on: the path of the module that it belongs to.
PATH_KEY = "moe_export.path"


def moe_nodes(model: ir.Model, op_type: str | None = None) -> Iterator[ir.Node]:
    """The custom nodes of the main graph in order, or those of one ``op_type``."""
    for node in model.graph:
        if node.domain == spec.DOMAIN and op_type in (None, node.op_type):
            yield node


def node_attributes(node: ir.Node) -> spec.OpAttributes:
    """Read a node's attributes against the contract.

    Raises:
        ContractError: names the attribute at fault.
    """
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    return spec.op_attributes(node.op_type).from_onnx(values)
