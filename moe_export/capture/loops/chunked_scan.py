"""Gated linear attention as an ONNX ``Scan`` over chunks of tokens.

Within a chunk all tokens are computed at once; between chunks the state is passed on. The cost
grows linearly with the length, and memory holds one chunk's square matrices at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from moe_export.capture.loops.nodes import Nodes, ScanBody, static_sizes

# Tokens per chunk. A longer chunk has fewer turns and larger triangles; a decay per channel makes
# the triangles K times as large.
CHUNK = 32
CHUNK_PER_CHANNEL = 16

# Far below any logarithm of a decay: its exponential is 0.
_NEVER = np.float32(-1e30)


def gated_linear_attention_nodes(nodes: Nodes, inputs: Sequence[ir.Value]) -> list[ir.Value]:
    """Write ``recurrences.gated_linear_attention``.

    Args:
        nodes: Get what is written.
        inputs: Query, key, value, decay and state, and beta for the delta rule.

    Returns:
        The output and the state behind the last token.
    """
    query, key, value, decay, state = inputs[:5]
    heads, key_size, value_size = static_sizes(state, 1)
    decays = static_sizes(decay, 3)[0]
    chunk = CHUNK if decays == 1 else CHUNK_PER_CHANNEL
    zero, one, size = nodes.ints(0), nodes.ints(1), nodes.ints(chunk)
    length = nodes.add("Shape", query, start=1, end=2)
    turns = nodes.add("Div", nodes.add("Add", length, nodes.ints(chunk - 1)), size)
    padded = nodes.add("Mul", turns, size)
    pads = nodes.add("Concat", zero, nodes.add("Sub", padded, length), axis=0)

    def chunks(tensor: ir.Value, width: int) -> ir.Value:
        """``[B, T, N, width]`` to ``[turns, B, N, chunk, width]``, zeros behind the last token."""
        longer = nodes.add("Pad", tensor, pads, None, one)
        sizes = nodes.add("Concat", zero, turns, nodes.ints(chunk, heads, width), axis=0)
        split = nodes.add("Reshape", longer, sizes)
        return nodes.add("Transpose", split, perm=[1, 0, 3, 2, 4])

    widths = (key_size, key_size, value_size, decays)
    scanned = [chunks(t, w) for t, w in zip((query, key, value, decay), widths, strict=True)]
    if delta := len(inputs) > 5:
        scanned.append(chunks(nodes.add("Unsqueeze", inputs[5], nodes.ints(-1)), 1))
    body = _body(heads, (key_size, value_size, decays), chunk, delta=delta)
    last, outputs = nodes.add_many(
        "Scan", 2, state, *scanned, body=body, num_scan_inputs=len(scanned)
    )
    sizes = nodes.add("Concat", zero, padded, nodes.ints(heads, value_size), axis=0)
    whole = nodes.add("Transpose", outputs, perm=[1, 0, 3, 2, 4])
    whole = nodes.add("Reshape", whole, sizes)
    return [nodes.add("Slice", whole, zero, length, one), last]


def _body(heads: int, widths: tuple[int, int, int], chunk: int, *, delta: bool) -> ir.Graph:
    """One chunk: the state and ``[B, N, chunk, width]`` slices to the state and the output.

    ``widths`` are those of a key, a value and a decay.
    """
    key_size, value_size, decays = widths
    body = ScanBody("gated_linear_attention")
    state = body.input("state", "batch", heads, key_size, value_size)
    query = body.input("query", "batch", heads, chunk, key_size)
    key = body.input("key", "batch", heads, chunk, key_size)
    value = body.input("value", "batch", heads, chunk, value_size)
    decay = body.input("decay", "batch", heads, chunk, decays)
    beta = body.input("beta", "batch", heads, chunk, 1) if delta else None

    total = body.add("CumSum", decay, body.constant(np.int64(2)))  # log decay since the chunk began
    since_start = body.add("Exp", total)
    triangle = _Triangle(body, chunk)
    scores = _decayed_scores if decays == 1 else _decayed_scores_per_channel
    new = value
    if beta is not None:
        weighted_key = body.add("Mul", key, beta)
        attention, overlap = scores(triangle, key, total, query, weighted_key)
        decayed_key = body.add("Mul", weighted_key, since_start)
        fresh = body.add("Mul", value, beta)
        fresh = body.add("Sub", fresh, body.add("MatMul", decayed_key, state))
        new = body.add("MatMul", triangle.invert(overlap), fresh)
    else:
        (attention,) = scores(triangle, key, total, query)
    before = body.add("MatMul", body.add("Mul", query, since_start), state)
    output = body.add("Add", before, body.add("MatMul", attention, new))

    end = body.add("Slice", total, body.ints(-1), body.ints(chunk), body.ints(2))
    until_end = body.add("Exp", body.add("Sub", end, total))
    kept = body.add("Transpose", body.add("Exp", end), perm=[0, 1, 3, 2])
    written = body.add("Transpose", body.add("Mul", key, until_end), perm=[0, 1, 3, 2])
    kept_state = body.add("Mul", state, kept)
    next_state = body.add("Add", kept_state, body.add("MatMul", written, new))
    return body.finish(
        (next_state, ("batch", heads, key_size, value_size)),
        (output, ("batch", heads, chunk, value_size)),
    )


class _Triangle:
    """The square of a chunk's tokens by themselves, of which the lower triangle counts."""

    def __init__(self, body: ScanBody, chunk: int) -> None:
        self.body = body
        row, column = np.indices((chunk, chunk))
        # Below the diagonal, the number of the highest bit in which row and column differ.
        level = np.frexp(row ^ column)[1] - 1
        level = np.where(row > column, level, np.where(row == column, -1, -2))
        self._levels = int(level.max()) + 1
        self._level = body.constant(level.astype(np.int32))
        self.lower = body.add("Greater", self._level, body.constant(np.int32(-2)))
        self.never = body.constant(_NEVER)

    def invert(self, matrix: ir.Value) -> ir.Value:
        """The inverse of the identity plus the strictly lower part of ``[B, N, chunk, chunk]``.

        Blocks of twice the size at each level: with ``X`` the inverse of the blocks on the
        diagonal and ``L`` what lies below them, ``X - X L X`` is that of the larger blocks. Every
        entry in between is one of the inverse of a shorter chunk, so that nothing grows large and
        cancels, as powers of the matrix would where keys repeat.
        """
        body, zero = self.body, self.body.constant(np.float32(0))
        inverse = None
        for level in range(self._levels):
            chosen = body.add("Equal", self._level, body.constant(np.int32(level)))
            below = body.add("Where", chosen, matrix, zero)
            if inverse is None:
                on_diagonal = body.add("Equal", self._level, body.constant(np.int32(-1)))
                identity = body.add("Cast", on_diagonal, to=int(ir.DataType.FLOAT))
                inverse = body.add("Sub", identity, below)
            else:
                product = body.add("MatMul", body.add("MatMul", inverse, below), inverse)
                inverse = body.add("Sub", inverse, product)
        assert inverse is not None  # a chunk has more than one token
        return inverse


def _decayed_scores(
    triangle: _Triangle, key: ir.Value, total: ir.Value, *readers: ir.Value
) -> list[ir.Value]:
    """For each of ``readers``, its products with the keys, decayed from key to reader.

    ``[B, N, chunk, chunk]``, zero above the diagonal.
    """
    body = triangle.body
    apart = body.add("Sub", total, body.add("Transpose", total, perm=[0, 1, 3, 2]))
    decayed = body.add("Exp", body.add("Where", triangle.lower, apart, triangle.never))
    keys = body.add("Transpose", key, perm=[0, 1, 3, 2])
    return [body.add("Mul", body.add("MatMul", r, keys), decayed) for r in readers]


def _decayed_scores_per_channel(
    triangle: _Triangle, key: ir.Value, total: ir.Value, *readers: ir.Value
) -> list[ir.Value]:
    """As ``_decayed_scores``, each channel with its own decay."""
    body = triangle.body
    row, column, last = body.ints(3), body.ints(2), body.ints(-1)
    lower = body.add("Unsqueeze", triangle.lower, last)
    apart = body.add("Sub", body.add("Unsqueeze", total, row), body.add("Unsqueeze", total, column))
    decayed = body.add("Exp", body.add("Where", lower, apart, triangle.never))
    keys = body.add("Mul", decayed, body.add("Unsqueeze", key, column))
    return [
        body.add("Squeeze", body.add("MatMul", keys, body.add("Unsqueeze", r, last)), last)
        for r in readers
    ]
