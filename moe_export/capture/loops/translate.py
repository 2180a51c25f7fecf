"""From the recurrences' PyTorch operators to ONNX: one node while tracing, then a ``Scan``.

``torch.onnx`` takes a translation that writes nodes through onnxscript, which knows no node of
several outputs such as ``Scan``. So an operator becomes one node of a domain of its own, which is
replaced by standard operators in the finished graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import onnx.defs
import onnx_ir as ir
import onnxscript
import torch

import moe_export.capture.loops.recurrences  # noqa: F401 - registers the operators
from moe_export.capture.loops.chunked_scan import gated_linear_attention_nodes
from moe_export.capture.loops.nodes import Nodes
from moe_export.capture.loops.token_scan import selective_scan_nodes

DOMAIN = "moe_export.loops"

_WRITERS: dict[str, Callable[[Nodes, Sequence[ir.Value]], list[ir.Value]]] = {
    "GatedLinearAttention": gated_linear_attention_nodes,
    "SelectiveScan": selective_scan_nodes,
}
# How many inputs there are at least and at most.
_INPUTS = {"GatedLinearAttention": (5, 6), "SelectiveScan": (6, 6)}


def _schema(op_type: str) -> onnx.defs.OpSchema:
    schema = onnx.defs.OpSchema
    required, most = _INPUTS[op_type]
    options = schema.FormalParameterOption
    return schema(
        op_type,
        DOMAIN,
        1,
        doc="Replaced by standard operators before a graph is written.",
        inputs=[
            schema.FormalParameter(
                f"input_{i}", "T", param_option=options.Single if i < required else options.Optional
            )
            for i in range(most)
        ],
        outputs=[schema.FormalParameter(name, "T") for name in ("output", "last_state")],
        type_constraints=[("T", ["tensor(float)"], "")],
    )


@cache
def loop_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The recurrences' operators with their ONNX translations, for ``torch.onnx.export``."""
    for op_type in _WRITERS:
        if not onnx.defs.has(op_type, DOMAIN):
            onnx.defs.register_schema(_schema(op_type))
    opset = onnxscript.values.Opset(DOMAIN, 1)

    # torch.onnx reads the parameters' names; it binds positional arguments to them.
    def attention(query, key, value, decay, beta, state):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        optional = () if beta is None else (beta,)
        return opset.GatedLinearAttention(query, key, value, decay, state, *optional)

    def scan(x, step, a, b, c, state):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return opset.SelectiveScan(x, step, a, b, c, state)

    ops = torch.ops.moe_export
    return {ops.gated_linear_attention.default: attention, ops.selective_scan.default: scan}


def write_scans(model: ir.Model) -> int:
    """Replace the recurrences' nodes by standard operators with a ``Scan``.

    Returns:
        How many there were.

    Raises:
        UnsupportedModelError: heads or widths have no fixed size.
    """
    found = [node for node in model.graph if node.domain == DOMAIN]
    for index, node in enumerate(found):
        nodes = Nodes(f"{node.op_type}.{index}")
        results = _WRITERS[node.op_type](nodes, [v for v in node.inputs if v is not None])
        model.graph.insert_before(node, nodes.nodes)
        for old, new in zip(node.outputs, results, strict=True):
            new.type, new.shape = old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    model.opset_imports.pop(DOMAIN, None)
    return len(found)
