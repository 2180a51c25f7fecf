"""Layers are found by their path, whether one node computes their experts or several."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from moe_export.capture.stage import CapturedModel
from moe_export.errors import UnsupportedModelError
from moe_export.lower.functions import attach_functions
from moe_export.lower.stage import lower
from moe_export.ops.onnx_ops import translation_table
from moe_export.ops.portable import OPSET
from moe_export.ops.spec import GroupedExperts, TopKGating
from moe_export.ops.spec_rows import ExpertCombine, ExpertDispatch, GroupedMatMul
from moe_export.ops.torch_ops import grouped_experts, top_k_gating
from moe_export.ops.torch_rows import expert_combine, expert_dispatch, grouped_matmul
from moe_export.optimize.fuse_routers import fuse_routers
from moe_export.pack.model_file import pack, write_experts
from moe_export.progress import SilentProgress
from moe_export.runners.onnxruntime import OnnxRuntimeRunner

T, E, H, I = 7, 4, 6, 5  # noqa: E741 - the contract's letters
EXPERTS = GroupedExperts(
    num_experts=E, hidden_size=H, intermediate_size=I, gated=False, activation="relu"
)


class Plain(nn.Module):
    """One node computes the experts."""

    def __init__(self, path, calls=1):
        super().__init__()
        self.path, self.calls = path, calls
        self.router = nn.Linear(H, E, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(E, I, H)), nn.Parameter(torch.randn(E, H, I))

    def route(self, x):
        weights, ids = self.router(x).softmax(-1).topk(2)
        return ids, weights / weights.sum(-1, keepdim=True)

    def experts(self, x, ids, weights):
        return grouped_experts([x, ids, weights, self.up, self.down], EXPERTS, path=self.path)

    def forward(self, x):
        for _ in range(self.calls):
            x = self.experts(x, *self.route(x))
        return x


class Gated(Plain):
    """Its router is the op already."""

    def route(self, x):
        return top_k_gating(self.router(x), TopKGating(top_k=2), path=self.path)


class Rows(Plain):
    """Two products between rows spread and rows collected."""

    def experts(self, x, ids, weights):
        dispatch = ExpertDispatch(num_experts=E, hidden_size=H)
        rows, row_map, ends, _ = expert_dispatch(x, ids, dispatch, path=self.path)
        up = GroupedMatMul(num_experts=E, in_features=H, out_features=I)
        down = GroupedMatMul(num_experts=E, in_features=I, out_features=H)
        inner = grouped_matmul(rows, self.up, ends, up, path=self.path).tanh()
        rows = grouped_matmul(inner, self.down, ends, down, path=self.path)
        return expert_combine(rows, row_map, weights, ExpertCombine(hidden_size=H), path=self.path)


def lowered(*layers, unused=()):
    model = nn.Sequential(*layers).eval()
    tokens = torch.export.Dim("tokens")
    with torch.no_grad():
        program = torch.export.export(
            model, (torch.randn(T, H),), dynamic_shapes=({0: tokens},), strict=False
        )
        graph = torch.onnx.export(
            program,
            custom_translation_table=translation_table(),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        ).model
    blocks = [SimpleNamespace(path=la.path, experts=EXPERTS, describe=dict) for la in layers]
    blocks += [SimpleNamespace(path=path) for path in unused]
    return lower(CapturedModel(graph, tuple(blocks)))


@pytest.fixture(scope="module")
def three():
    torch.manual_seed(0)
    layers = [Plain("first"), Rows("second"), Gated("third")]
    return layers, lowered(*layers)


def test_layers_come_in_the_order_they_run_with_their_values(three):
    _, model = three
    assert [layer.block.path for layer in model.layers] == ["first", "second", "third"]
    nodes = {node.name: node for node in model.model.graph}
    plain, rows, _ = model.layers
    assert [v.name for v in nodes[plain.node].inputs[:3]] == [
        plain.x, plain.expert_ids, plain.expert_weights,
    ]  # fmt: skip
    spread, collected = nodes["second/ExpertDispatch"], nodes[rows.node]
    assert collected.op_type == "ExpertCombine"
    assert [v.name for v in spread.inputs] == [rows.x, rows.expert_ids]
    assert collected.inputs[2].name == rows.expert_weights
    assert collected.outputs[0].name == rows.y


def test_every_custom_node_has_a_name_of_its_own(three):
    names = [node.name for node in three[1].model.graph if node.domain == "moe_export"]
    assert len(set(names)) == len(names)
    assert {"second/GroupedMatMul", "second/GroupedMatMul.2"} <= set(names)


def test_a_router_that_is_the_op_already_is_told(three):
    plain, _, gated = three[1].layers
    assert (plain.gating, plain.routing) == (None, "")
    assert (gated.gating.top_k, gated.routing) == (2, "softmax top-2")
    facts = gated.describe()
    assert (facts["router"], facts["routing"]) == ("TopKGating", "softmax top-2")
    assert plain.describe()["router"] == "standard operators"


def test_routers_of_both_forms_are_fused_and_experts_are_written_alone(tmp_path):
    torch.manual_seed(0)
    layers = [Plain("first"), Rows("second")]
    model = lowered(*layers)
    found = fuse_routers(model.model, model.layers, SilentProgress())
    assert [layer.routing for layer in found] == ["softmax top-2, renormalized"] * 2
    attach_functions(model.model)
    packed = pack(type(model)(model.model, found), tmp_path, "portable")
    ids = torch.tensor([[0, 3], [2, 1], [1, 1]])
    weights, x = torch.rand(3, 2), torch.randn(3, H)
    feeds = {"x": x.numpy(), "expert_weights": weights.numpy()}
    for layer, eager in zip(found, layers, strict=True):
        path = write_experts(packed, layer, "experts.onnx")
        runner = OnnxRuntimeRunner(path, None)
        y = runner.run({**feeds, "expert_ids": ids.numpy().astype(np.int32)})["y"]
        expected = eager.experts(x, ids, weights)
        np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
        assert len(ir.load(path).graph.inputs) == 3


@pytest.mark.parametrize("kind", [Plain, Rows])
def test_every_call_of_a_layer_is_told_apart(kind):
    model = lowered(kind("shared", calls=3), Plain("last"))
    found = model.layers
    assert [layer.path for layer in found] == ["shared", "shared#2", "shared#3", "last"]
    assert [layer.describe()["path"] for layer in found] == [layer.path for layer in found]
    assert len({layer.block.path for layer in found}) == 2
    assert len({value for la in found for value in (la.node, la.y)}) == 2 * len(found)
    fused = fuse_routers(model.model, model.layers, SilentProgress())
    assert {layer.routing for layer in fused} == {"softmax top-2, renormalized"}


def test_calls_that_leave_other_nodes_are_refused():
    with pytest.raises(
        UnsupportedModelError, match="mixed: it is called 2 times, and leaves other"
    ):
        lowered(Gated("mixed"), Plain("mixed"))


def test_a_layer_without_experts_in_the_graph_is_refused():
    with pytest.raises(UnsupportedModelError, match="lost: the layer's result is not used"):
        lowered(Plain("first"), unused=["lost"])
