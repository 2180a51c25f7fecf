"""This library's op in ONNX Runtime."""

from __future__ import annotations

from onnx import helper

from moe_bench.layers import Weights
from moe_bench.routing import Bind
from moe_bench.sessions import bind_session, external_weight, open_session, save_model
from moe_export.ops import spec
from moe_export.runners.library import ort_library_path


def prepare(weights: Weights) -> Bind:
    """A session with one ``GroupedExperts``, its float32 weights read in place."""
    layer = weights.layer
    attributes = spec.GroupedExperts(
        num_experts=layer.experts,
        hidden_size=layer.hidden,
        intermediate_size=layer.intermediate,
        gated=layer.gated,
        activation=layer.activation,
    )
    node = helper.make_node(
        attributes.op_type,
        ["x", "ids", "weights", "up", "down"],
        ["y"],
        domain=spec.DOMAIN,
        **attributes.to_onnx(),
    )
    stored = [
        external_weight("up", weights.up.shape),
        external_weight("down", weights.down.shape),
    ]
    path = save_model(weights.folder / "ours.onnx", node, layer, stored)
    session = open_session(path, ort_library_path())

    return bind_session(
        session, lambda c: {"x": c.x, "ids": c.expert_ids, "weights": c.expert_weights}
    )
