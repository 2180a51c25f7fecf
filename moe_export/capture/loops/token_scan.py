"""The selective scan as an ONNX ``Scan`` over tokens."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from moe_export.capture.loops.nodes import Nodes, ScanBody, static_sizes


def selective_scan_nodes(nodes: Nodes, inputs: Sequence[ir.Value]) -> list[ir.Value]:
    """Write ``recurrences.selective_scan``.

    Args:
        nodes: Get what is written.
        inputs: ``x``, ``step``, ``a``, ``b``, ``c`` and the state.

    Returns:
        The output and the state behind the last token.
    """
    x, step, a, b, c, state = inputs
    channels, size = static_sizes(state, 1)
    scanned = [nodes.add("Transpose", tensor, perm=[1, 0, 2]) for tensor in (x, step, b, c)]
    last, outputs = nodes.add_many(
        "Scan", 2, state, *scanned, body=_body(channels, size, a), num_scan_inputs=len(scanned)
    )
    return [nodes.add("Transpose", outputs, perm=[1, 0, 2]), last]


def _body(channels: int, size: int, a: ir.Value) -> ir.Graph:
    """One token: the state ``[B, D, N]`` and slices ``[B, width]`` to the state and the output.

    The matrix ``a`` is read from the graph around: it is the same at every token.
    """
    body = ScanBody("selective_scan")
    state = body.input("state", "batch", channels, size)
    x, step = (body.input(name, "batch", channels) for name in ("x", "step"))
    b, c = (body.input(name, "batch", size) for name in ("b", "c"))
    last, middle = body.ints(-1), body.ints(1)
    step = body.add("Unsqueeze", step, last)
    kept = body.add("Mul", body.add("Exp", body.add("Mul", step, a)), state)
    entering = body.add("Mul", step, body.add("Unsqueeze", b, middle))
    entering = body.add("Mul", entering, body.add("Unsqueeze", x, last))
    next_state = body.add("Add", kept, entering)
    read = body.add("MatMul", next_state, body.add("Unsqueeze", c, last))
    return body.finish(
        (next_state, ("batch", channels, size)),
        (body.add("Squeeze", read, last), ("batch", channels)),
    )
