"""ONNX Runtime's ``QMoE`` operator: weights of 4 or 8 bits, one scale per block of 128."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from moe_bench.layers import Floats, Weights
from moe_bench.ort_moe import bind_logits, gate_attributes, interleaved
from moe_bench.quantize import quantize_blocks
from moe_bench.routing import Bind
from moe_bench.sessions import external_weight, open_session, save_model
from moe_export.quantize.int4 import pack_nibbles

_BLOCK = 128


def preparer(bits: Literal[4, 8]) -> Callable[[Weights], Bind]:
    """How to prepare a session with one ``com.microsoft.QMoE``."""

    def prepare(weights: Weights) -> Bind:
        layer = weights.layer
        stored = [
            *_quantize(f"q{bits}_fc1", weights.folder, interleaved(weights), bits),
            *_quantize(f"q{bits}_fc2", weights.folder, iter(weights.down), bits),
        ]
        names = [tensor.name for tensor in stored]
        node = helper.make_node(
            "QMoE",
            ["x", "logits", names[0], names[1], "", names[2], names[3]],
            ["y"],
            domain="com.microsoft",
            expert_weight_bits=bits,
            block_size=_BLOCK,
            **gate_attributes(layer),
        )
        path = save_model(weights.folder / f"qmoe{bits}.onnx", node, layer, stored)
        return bind_logits(open_session(path), layer.experts)

    return prepare


def _quantize(
    name: str, folder: Path, experts: Iterator[Floats], bits: int
) -> list[onnx.TensorProto]:
    """Codes ``[E, N, K·bits/8]``, lower half bytes first, and scales ``[E, N, K/128]``."""
    codes, scales = [], []
    for weight in experts:
        signed, scale = quantize_blocks(weight, _BLOCK, bits)
        code = signed.view(np.uint8) + np.uint8(2 ** (bits - 1))
        codes.append(code if bits == 8 else pack_nibbles(code))
        scales.append(scale)
    np.stack(codes).tofile(folder / f"{name}.bin")
    np.stack(scales).astype(np.float32).tofile(folder / f"{name}_scale.bin")
    return [
        external_weight(name, (len(codes), *codes[0].shape), TensorProto.UINT8),
        external_weight(f"{name}_scale", (len(scales), *scales[0].shape)),
    ]
