"""Stage 4: lower the traced graph and check it against the contract."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from moe_export.capture.stage import CapturedModel
from moe_export.errors import UnsupportedModelError
from moe_export.lower.functions import attach_functions
from moe_export.lower.weights import normalize_weights
from moe_export.ops.contract import check_model, moe_nodes
from moe_export.ops.onnx_ops import PATH_KEY
from moe_export.ops.spec import VERSION
from moe_export.plan import BuildPlan
from moe_export.recognize.block import MoeBlock


@dataclass(frozen=True)
class LoweredLayer:
    """One MoE layer in the graph, by names of its values.

    Attributes:
        block: The layer in PyTorch.
        node: Its ``GroupedExperts`` node.
        x, expert_ids, expert_weights, y: Names of the values around it.
    """

    block: MoeBlock
    node: str
    x: str
    expert_ids: str
    expert_weights: str
    y: str


@dataclass(frozen=True)
class LoweredModel:
    """The graph that is written, with its layers in the order they run."""

    model: ir.Model
    layers: tuple[LoweredLayer, ...]


def lower(captured: CapturedModel, plan: BuildPlan) -> LoweredModel:
    """Normalize weights, name the custom nodes, attach bodies where the target needs them.

    Raises:
        UnsupportedModelError: a layer has not exactly one expert node.
        ContractError: a node breaks the contract.
    """
    model = captured.model
    model.opset_imports["moe_export"] = VERSION
    normalize_weights(model)
    layers = _find_layers(model, captured.blocks)
    if plan.target == "portable":
        attach_functions(model)
    _strip_metadata(model)
    check_model(model)
    return LoweredModel(model, layers)


def _find_layers(model: ir.Model, blocks: tuple[MoeBlock, ...]) -> tuple[LoweredLayer, ...]:
    by_path = {block.path: block for block in blocks}
    found: list[LoweredLayer] = []
    for node in moe_nodes(model):
        path = node.metadata_props[PATH_KEY]
        node.name = f"{path or 'root'}/{node.op_type}"
        if node.op_type != "GroupedExperts":
            continue
        if path in {layer.block.path for layer in found}:
            raise UnsupportedModelError(f"{path} is called more than once in one run of the model")
        x, ids, weights = (value.name for value in node.inputs[:3] if value is not None)
        y = node.outputs[0].name
        assert node.name and x and ids and weights and y  # exported values have names
        found.append(LoweredLayer(by_path[path], node.name, x, ids, weights, y))
    missing = [path for path in by_path if path not in {layer.block.path for layer in found}]
    if missing:
        raise UnsupportedModelError(
            f"{', '.join(missing)}: the layer's result is not used by the model's outputs"
        )
    return tuple(found)


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
