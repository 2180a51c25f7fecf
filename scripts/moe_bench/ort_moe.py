"""ONNX Runtime's own ``MoE`` operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import helper

from moe_bench.layers import Floats, Layer, Weights
from moe_bench.routing import Bind, Call
from moe_bench.sessions import bind_session, external_weight, open_session, save_model

# A logit so low that its expert is never among the chosen.
_NEVER = -50.0


def prepare(weights: Weights) -> Bind:
    """A session with one ``com.microsoft.MoE``."""
    layer = weights.layer
    if layer.gated:
        with (weights.folder / "fc1.bin").open("wb") as file:
            for expert in interleaved(weights):
                expert.tofile(file)
    name = "fc1" if layer.gated else "up"
    node = helper.make_node(
        "MoE",
        ["x", "logits", name, "", "down"],
        ["y"],
        domain="com.microsoft",
        **gate_attributes(layer),
    )
    stored = [
        external_weight(name, weights.up.shape),
        external_weight("down", weights.down.shape),
    ]
    path = save_model(weights.folder / "ort_moe.onnx", node, layer, stored)
    return bind_logits(open_session(path), layer.experts)


def gate_attributes(layer: Layer) -> dict[str, Any]:
    """How both operators route and activate."""
    routed = {"k": layer.top_k, "normalize_routing_weights": 1, "activation_alpha": 1.0}
    if not layer.gated:
        return {**routed, "activation_type": layer.activation}
    return {**routed, "activation_type": "swiglu", "swiglu_fusion": 1, "activation_beta": 0.0}


def interleaved(weights: Weights) -> Iterator[Floats]:
    """Each expert's first matrix, in which gate and up rows alternate."""
    layer = weights.layer
    for expert in weights.up:
        halves = expert.reshape(-1, layer.intermediate, layer.hidden)
        yield np.ascontiguousarray(halves.swapaxes(0, 1)).reshape(expert.shape)


def bind_logits(session: ort.InferenceSession, experts: int) -> Bind:
    """Run a session on tokens and on logits from which a softmax over the chosen gives weights."""

    def name_inputs(call: Call) -> dict[str, Floats]:
        logits = np.full((len(call.x), experts), _NEVER, np.float32)
        np.put_along_axis(logits, call.expert_ids, np.log(call.expert_weights), axis=1)
        return {"x": call.x, "logits": logits}

    return bind_session(session, name_inputs)
