"""ggml: ``mul_mat_id`` as llama.cpp builds a layer of experts."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Literal

import numpy as np

from moe_bench.ggml_library import BF16, F32, I32, Q4_0, Q8_0, Ggml, load_ggml
from moe_bench.layers import Floats, Weights
from moe_bench.routing import Bind, Call, Refused
from moe_bench.sessions import THREADS

Kind = Literal["BF16", "Q8_0", "Q4_0"]
_KINDS = {"BF16": BF16, "Q8_0": Q8_0, "Q4_0": Q4_0}
_BLOCK, _REPACKED_ROWS = 32, 8


def preparer(kind: Kind) -> Callable[[Weights], Bind]:
    """How to store the weights in one of ggml's types; Q4_0 is repacked for this CPU."""

    def prepare(weights: Weights) -> Bind:
        stored = StoredExperts(load_ggml(), weights, kind)

        def bind(call: Call) -> Callable[[], Floats]:
            return LayerGraph(stored, call).run

        return bind

    return prepare


class StoredExperts:
    """Weights of a layer in a buffer of ggml's, and two threads.

    Args:
        ggml: The library.
        weights: What to store.
        kind: In which type.

    Raises:
        Refused: the type takes other sizes, or this build does not repack it.
    """

    def __init__(self, ggml: Ggml, weights: Weights, kind: Kind) -> None:
        layer = self.layer = weights.layer
        if layer.hidden % _BLOCK or layer.intermediate % _BLOCK:
            raise Refused(f"{kind} takes rows of whole blocks of {_BLOCK}")
        buffers = ggml.backend_cpu_buffer_type()
        if kind == "Q4_0":
            buffers = ggml.repack_buffers()
            if buffers is None:
                raise Refused(f"ggml {ggml.version().decode()} was built without repacked Q4_0")
        up = weights.up.reshape(layer.experts, -1, layer.intermediate, layer.hidden)
        matrices = [*up.swapaxes(0, 1), weights.down]
        self.ggml, self.context = ggml, ggml.new_context(len(matrices))
        self.tensors = [
            ggml.new_tensor_3d(self.context, _KINDS[kind], *m.shape[::-1]) for m in matrices
        ]
        self.buffer = ggml.backend_alloc_ctx_tensors_from_buft(self.context, buffers)
        if not self.buffer:
            raise MemoryError(f"ggml has no room for {kind} weights")
        for tensor, matrix in zip(self.tensors, matrices, strict=True):
            self._store(tensor, matrix, _KINDS[kind])
        self.backend = ggml.backend_cpu_init()
        ggml.backend_cpu_set_n_threads(self.backend, THREADS)
        weakref.finalize(self, _free_stored, ggml, self.backend, self.buffer, self.context)

    def _store(self, tensor: int, matrix: Floats, kind: int) -> None:
        """Write one matrix as a whole: repacking takes no parts of it."""
        experts, rows, columns = matrix.shape
        data = np.empty(self.ggml.nbytes(tensor), np.uint8)
        size = data.nbytes // experts
        for expert, place in zip(matrix, range(0, data.nbytes, size), strict=True):
            source = np.ascontiguousarray(expert)
            into = data[place : place + size].ctypes.data
            self.ggml.quantize_chunk(kind, source.ctypes.data, into, 0, rows, columns, None)
        self.ggml.backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)


class LayerGraph:
    """The graph of one call, its inputs and its memory."""

    def __init__(self, stored: StoredExperts, call: Call) -> None:
        ggml, layer, tokens = stored.ggml, stored.layer, len(call.x)
        self.stored, self.shape = stored, call.x.shape
        inputs = ggml.new_context(3)
        x = ggml.new_tensor_3d(inputs, F32, layer.hidden, 1, tokens)
        ids = ggml.new_tensor_2d(inputs, I32, layer.top_k, tokens)
        expert_weights = ggml.new_tensor_3d(inputs, F32, 1, layer.top_k, tokens)
        cpu = ggml.backend_cpu_buffer_type()
        buffer = ggml.backend_alloc_ctx_tensors_from_buft(inputs, cpu)
        arrays = (call.x, call.expert_ids, call.expert_weights)
        for tensor, array in zip((x, ids, expert_weights), arrays, strict=True):
            given = np.ascontiguousarray(array)
            ggml.backend_tensor_set(tensor, given.ctypes.data, 0, given.nbytes)
        context = ggml.new_context(16 + 3 * layer.top_k)
        self.y = self._build(context, x, ids, expert_weights, tokens)
        self.graph = ggml.new_graph(context)
        ggml.build_forward_expand(self.graph, self.y)
        memory = ggml.gallocr_new(cpu)
        weakref.finalize(self, _free_graph, ggml, memory, buffer, inputs, context)
        if not ggml.gallocr_alloc_graph(memory, self.graph):
            raise MemoryError("ggml has no room for the graph")

    def _build(self, context: int, x: int, ids: int, expert_weights: int, tokens: int) -> int:
        ggml, layer = self.stored.ggml, self.stored.layer
        *ups, down = self.stored.tensors
        projected = [ggml.mul_mat_id(context, up, x, ids) for up in ups]
        hidden = (ggml.swiglu_split if layer.gated else ggml.relu)(context, *projected)
        out = ggml.mul(context, ggml.mul_mat_id(context, down, hidden, ids), expert_weights)
        row = layer.hidden * 4
        views = [
            ggml.view_2d(context, out, layer.hidden, tokens, layer.top_k * row, place * row)
            for place in range(layer.top_k)
        ]
        total = views[0] if len(views) > 1 else ggml.cont(context, views[0])
        for view in views[1:]:
            total = ggml.add(context, total, view)
        ggml.set_output(total)
        return int(total)

    def run(self) -> Floats:
        """The layer's result, ``[T, H]``."""
        status = self.stored.ggml.backend_graph_compute(self.stored.backend, self.graph)
        if status:
            raise RuntimeError(f"ggml gave status {status}")
        y = np.empty(self.shape, np.float32)
        self.stored.ggml.backend_tensor_get(self.y, y.ctypes.data, 0, y.nbytes)
        return y


def _free_stored(ggml: Ggml, backend: int, buffer: int, context: int) -> None:
    ggml.backend_free(backend)
    ggml.backend_buffer_free(buffer)
    ggml.free(context)


def _free_graph(ggml: Ggml, memory: int, buffer: int, inputs: int, context: int) -> None:
    ggml.gallocr_free(memory)
    ggml.backend_buffer_free(buffer)
    for each in (inputs, context):
        ggml.free(each)
