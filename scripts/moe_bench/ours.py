"""This library's op in ONNX Runtime, on weights packed as a bundle has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import onnx
from onnx import TensorProto, helper

from moe_bench.layers import Floats, Layer, Weights
from moe_bench.routing import Bind
from moe_bench.sessions import THREADS, bind_session, external_weight, open_session, save_model
from moe_export.ops import spec
from moe_export.ops.record import WeightType
from moe_export.ops.storage import ExpertMatrix, WeightStorage
from moe_export.pack.panels import pack_rows
from moe_export.quantize.matrix import quantize_matrix
from moe_export.runners.library import ort_library_path


def preparer(weight_type: WeightType, block_size: int = 0) -> Callable[[Weights], Bind]:
    """How to prepare a session with one ``GroupedExperts``, its weights read in place.

    Args:
        weight_type: What the weights are rounded to, as ``moe-export build`` does.
        block_size: Columns that share a scale; 0 for one scale per row, or none.
    """

    def prepare(weights: Weights) -> Bind:
        storage = WeightStorage(weight_type, block_size, layout="cpu_v1")
        attributes = describe_layer(weights.layer, storage)
        up, down = attributes.matrices
        stored = [
            _write(weights, storage, up, weights.up),
            _write(weights, storage, down, weights.down),
        ]
        node = helper.make_node(
            attributes.op_type,
            ["x", "ids", "weights", *(tensor.name for tensor in stored)],
            ["y"],
            domain=spec.DOMAIN,
            **attributes.to_onnx(),
        )
        path = weights.folder / f"ours_{weight_type}_{block_size}.onnx"
        save_model(path, node, weights.layer, stored)
        return bind_session(
            open_session(path, ort_library_path()),
            lambda c: {"x": c.x, "ids": c.expert_ids, "weights": c.expert_weights},
        )

    return prepare


def describe_layer(layer: Layer, storage: WeightStorage) -> spec.GroupedExperts:
    """The attributes of a layer's node."""
    return spec.GroupedExperts(
        num_experts=layer.experts,
        hidden_size=layer.hidden,
        intermediate_size=layer.intermediate,
        gated=layer.gated,
        activation=layer.activation,
        weight_type=storage.weight_type,
        block_size=storage.block_size,
        weight_layout=storage.layout,
    )


def _write(
    weights: Weights, storage: WeightStorage, matrix: ExpertMatrix, experts: Floats
) -> onnx.TensorProto:
    """Round and pack a matrix to its file, one expert at a time per thread."""
    name = f"ours_{storage.weight_type}_{storage.block_size}_{matrix.prefix}weight"
    row_major = dataclasses.replace(storage, layout="row_major")

    def pack(expert: Floats) -> bytes:
        parts = quantize_matrix(row_major, expert)
        return pack_rows(
            storage.weight_type, **parts, block_size=storage.block_size, gated=matrix.gated
        ).tobytes()

    with (weights.folder / f"{name}.bin").open("wb") as file:
        for packed in _in_threads(pack, experts):
            file.write(packed)
    return external_weight(
        name, (weights.layer.experts, storage.packed_bytes(matrix)), TensorProto.INT8
    )


def _in_threads(pack: Callable[[Floats], bytes], experts: Floats) -> Iterator[bytes]:
    """Results in order; few wait in memory."""
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(experts), 2 * THREADS):
            yield from pool.map(pack, experts[start : start + 2 * THREADS])
