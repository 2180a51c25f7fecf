"""Stage 4: lower the traced graph and check it against the contract."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from moe_export.capture.stage import CapturedModel
from moe_export.lower.half_precision import cast_experts, route_in_float32, widen_boundary
from moe_export.lower.layers import LoweredLayer, find_layers
from moe_export.lower.weights import normalize_weights
from moe_export.ops.contract import check_model
from moe_export.ops.nodes import PATH_KEY
from moe_export.ops.spec import VERSION
from moe_export.plan import DType
from moe_export.telemetry.record import LayerTelemetry


@dataclass(frozen=True)
class LoweredModel:
    """The graph that is written.

    Attributes:
        model: The graph.
        layers: Its MoE layers in the order they run.
        telemetry: Outputs that tell how they spread their tokens, if any were asked for.
    """

    model: ir.Model
    layers: tuple[LoweredLayer, ...]
    telemetry: tuple[LayerTelemetry, ...] = ()


def lower(
    captured: CapturedModel, dtype: DType = "fp32", caches: Collection[str] = ()
) -> LoweredModel:
    """Normalize weights and name the custom nodes.

    Args:
        captured: The traced model; its graph is rewritten in place.
        dtype: Type of its activations.
        caches: Names of inputs and outputs that have this type too; others are float32.

    Raises:
        UnsupportedModelError: a layer's experts are not there exactly once.
        ContractError: a node breaks the contract.
    """
    model = captured.model
    model.opset_imports["moe_export"] = VERSION
    normalize_weights(model)
    if dtype != "fp32":
        route_in_float32(model)
        cast_experts(model, dtype)
        widen_boundary(model, caches)
    layers = find_layers(model, captured.blocks)
    _strip_metadata(model)
    check_model(model)
    return LoweredModel(model, layers)


def _strip_metadata(model: ir.Model) -> None:
    """Drop what tracing left: stack traces name files of the machine that exported."""
    for graph in model.graphs():
        for node in graph.all_nodes():
            path = node.metadata_props.get(PATH_KEY)
            node.metadata_props.clear()
            if path is not None:
                node.metadata_props[PATH_KEY] = path
            node.doc_string = None
        for value in graph.initializers.values():
            value.metadata_props.clear()
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.doc_string = None


__all__ = ["LoweredLayer", "LoweredModel", "lower"]
