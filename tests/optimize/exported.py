"""Export many small MoE layers at once and fuse their routers.

A layer's logits are its input, so that a test can choose them: its projection is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import nn

from moe_export.capture.stage import CapturedModel
from moe_export.lower.layers import LoweredLayer
from moe_export.lower.stage import LoweredModel, lower
from moe_export.ops.onnx_ops import translation_table
from moe_export.ops.portable import OPSET
from moe_export.ops.spec import GroupedExperts
from moe_export.ops.torch_ops import grouped_experts
from moe_export.optimize.fuse_routers import fuse_routers
from moe_export.optimize.slice_run import spell_out_sigmoid
from moe_export.progress import SilentProgress
from moe_export.runners.library import ort_library_path
from moe_export.runners.onnxruntime import OnnxRuntimeRunner

WIDTH = 2


@dataclass(frozen=True)
class Router:
    """A router under test: ``[T, E]`` logits to ids and weights, both ``[T, K]``.

    Attributes:
        route: The router.
        num_experts: E.
        stored: Tensors that it reads, by argument.
        samples: Whether its logits are ``[B, S, E]`` with as many samples.
    """

    route: Callable
    num_experts: int = 8
    stored: Mapping[str, torch.Tensor] | None = None
    samples: int | None = None

    def shaped(self, logits):
        """``[T, E]`` as the router takes it."""
        return (
            logits if self.samples is None else logits.reshape(self.samples, -1, self.num_experts)
        )


class Layer(nn.Module):
    """A router before two-wide experts."""

    def __init__(self, name, router):
        super().__init__()
        self.name, self.router, e = name, router, router.num_experts
        self.project = nn.Parameter(torch.eye(e))
        self.up = nn.Parameter(torch.randn(e, WIDTH, e))
        self.down = nn.Parameter(torch.randn(e, e, WIDTH))
        self.attributes = GroupedExperts(
            num_experts=e, hidden_size=e, intermediate_size=WIDTH, gated=False, activation="relu"
        )
        for key, tensor in (router.stored or {}).items():
            self.register_buffer(key, tensor)

    def forward(self, x):
        logits = torch.nn.functional.linear(x, self.project)
        routed = self.router.route(
            logits, **{k: getattr(self, k) for k in self.router.stored or {}}
        )
        ids, weights = routed
        tensors = [x.reshape(-1, x.shape[-1]), ids, weights, self.up, self.down]
        return grouped_experts(tensors, self.attributes, path=self.name)


class Model(nn.Module):
    """Every layer on its own input."""

    def __init__(self, routers):
        super().__init__()
        self.layers = nn.ModuleList(Layer(name, router) for name, router in routers.items())

    def forward(self, *inputs):
        return [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]


@dataclass(frozen=True)
class Fused:
    """A graph before and after fusion, with its layers by name."""

    before: ir.Model
    plain: Mapping[str, LoweredLayer]
    after: ir.Model
    layers: Mapping[str, LoweredLayer]

    def routing(self, name, logits, folder):
        """What the graph routes for ``logits`` before and after, ``[T, E]`` each."""
        num_experts = logits.shape[-1]
        return (
            dense(*run_routing(self.before, self.plain[name], logits, folder), num_experts),
            dense(*run_routing(self.after, self.layers[name], logits, folder), num_experts),
        )


def run_routing(model, layer, logits, folder):
    """Ids and weights of a layer, by ONNX Runtime with the op library."""
    name = f"x_{layer.block.path}"
    ends = [layer.expert_ids, layer.expert_weights]
    graph = ir.convenience.extract(model.graph, [name], ends)
    for value in graph.outputs:
        value.shape = None
    for node in [node for node in graph if node.op_type == "Sigmoid"]:
        spell_out_sigmoid(graph, node)  # ONNX Runtime's own is off by 1e-3 at -9
    alone = ir.Model(graph, ir_version=model.ir_version)
    alone.opset_imports.update(model.opset_imports)
    ir.save(alone, folder / "alone.onnx")
    runner = OnnxRuntimeRunner(folder / "alone.onnx", ort_library_path(), num_threads=1)
    found = runner.run({name: logits})
    return [found[end] for end in ends]


def lowered_model(routers: Mapping[str, Router]) -> LoweredModel:
    """All routers in one graph, lowered."""
    model = Model(routers).eval()
    inputs = tuple(r.shaped(torch.randn(12, r.num_experts)) for r in routers.values())
    shapes = tuple(
        {axis: torch.export.Dim(f"axis{axis}_{i}") for axis in range(x.dim() - 1)}
        for i, x in enumerate(inputs)
    )
    with torch.no_grad():
        program = torch.export.export(model, inputs, dynamic_shapes=(shapes,), strict=False)
        graph = torch.onnx.export(
            program,
            input_names=[f"x_{name}" for name in routers],
            custom_translation_table=translation_table(),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        ).model
    return lower(CapturedModel(graph, tuple(map(block, model.layers))))


def block(layer):
    """What fusion needs to know of a layer."""
    return SimpleNamespace(path=layer.name, experts=layer.attributes, describe=dict)


def fuse(routers: Mapping[str, Router]) -> Fused:
    """Export and fuse."""
    lowered = lowered_model(routers)
    before = ir.from_proto(ir.to_proto(lowered.model))
    layers = fuse_routers(lowered.model, lowered.layers, SilentProgress())
    RemoveUnusedNodesPass()(lowered.model)
    plain, fused = ({la.block.path: la for la in found} for found in (lowered.layers, layers))
    return Fused(before, plain, lowered.model, fused)


def dense(ids, weights, num_experts):
    """Weight of every expert, ``[T, E]``; ids out of range add nothing."""
    ids, weights = np.asarray(ids), np.asarray(weights, np.float64)
    result = np.zeros((len(ids), num_experts + 1))
    np.add.at(result, (np.arange(len(ids))[:, None], np.clip(ids, -1, num_experts)), weights)
    return result[:, :num_experts]


def eager_routing(router, logits):
    """The router's own answer, ``[T, E]``."""
    with torch.no_grad():
        logits = router.shaped(torch.from_numpy(logits))
        ids, weights = router.route(logits, **(router.stored or {}))
    return dense(ids.numpy(), weights.numpy(), router.num_experts)


def wrong_rows(fused, name, router, logits, folder):
    """``[T]``, rows on which the fused graph routes otherwise than eager and than before.

    The graph before is asked too, since eager's choice between exact ties is anyone's.
    """
    before, after = fused.routing(name, router.shaped(logits), folder)
    eager = eager_routing(router, logits)
    # Where all logits are equal any experts are right, with the right weights.
    same = np.ptp(logits, axis=1) == 0
    before, after, eager = (np.where(same[:, None], np.sort(a), a) for a in (before, after, eager))
    size = np.maximum(np.abs(after), np.abs(eager))
    with np.errstate(invalid="ignore"):
        relative = np.where(size > 1e-12, np.abs(after - eager) / np.maximum(size, 1e-30), 0)
    differs = ~(relative.max(axis=1) <= 3e-5)
    return differs & ~(np.abs(after - before).max(axis=1) <= 1e-6)
