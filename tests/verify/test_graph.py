"""Parity of graphs for GPUs, on the CPU: what it proves, and what it does not let pass."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
import torch

import moe_export
from moe_export import pipeline
from moe_export.errors import EnvironmentLacksError, ParityError
from moe_export.lower.stage import LoweredModel
from moe_export.lower.widen import widen
from moe_export.ops.nodes import moe_nodes
from moe_export.plan import BuildPlan
from moe_export.replay.report import OutputResult, ReplayReport
from moe_export.runners.numbers import numbers_in_code
from tests.engine import models

CUDA = {"target": "cuda", "dtype": "bf16"}


def build(folder, make=models.Net, **options):
    example = torch.randn(5, 64) if make is models.Net else None
    model = models.seeded(make)
    return moe_export.build(model, example, output=folder / "b", **CUDA | options)


def test_a_graph_in_half_precision_is_proved_to_the_tolerances_of_float32(tmp_path):
    model = models.seeded(models.Net)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bundle = moe_export.build(model, torch.randn(5, 64), output=tmp_path / "b", **CUDA)
    parity = bundle.parity()
    assert bundle.manifest.parity["status"] == "graph"
    assert not bundle.verified
    assert parity["max_error"] < 2e-6
    assert parity["layers"][0]["disagreeing"] == 0
    assert max(parity["layers"][0]["alone"].values()) < 1e-5
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    assert {p.name for p in bundle.folder.glob("*.onnx*")} == {"model.onnx", "model.onnx.data"}


@pytest.mark.parametrize(("weights", "most"), [("source", 2e-3), ("int8", 0.05), ("fp8", 0.1)])
def test_what_rounding_experts_costs_is_told_apart(tmp_path, weights, most):
    bundle = build(tmp_path, weights=weights)
    assert bundle.manifest.parity["max_error"] < 2e-6
    assert 0 < bundle.manifest.parity["quantization"]["rms"] < most
    stored = "bf16" if weights == "source" else weights
    assert bundle.manifest.layers[0]["weights"]["weight_type"] == stored


def optimize_with(change):
    """``pipeline.optimize``, with a fault planted in what it gives."""
    optimize = pipeline.optimize

    def optimized(*args):
        found = optimize(*args)
        change(found.model)
        return found

    return optimized


def swap_experts(model):
    (node,) = moe_nodes(model, "GroupedExperts")
    value = node.inputs[3]
    value.const_value = ir.tensor(value.const_value.numpy()[::-1].copy(), name=value.name)


def negate_ids(model):
    (node,) = moe_nodes(model, "GroupedExperts")
    ids = node.inputs[1]
    one = ir.node("Constant", [], {"value": ir.tensor(np.array(-1, ids.dtype.numpy()))})
    shifted = ir.node("Mul", [ids, one.outputs[0]])
    one.outputs[0].type = shifted.outputs[0].type = ids.type
    shifted.outputs[0].shape = ids.shape
    model.graph.insert_before(node, [one, shifted])
    node.replace_input_with(1, shifted.outputs[0])


@pytest.mark.parametrize("fault", [swap_experts, negate_ids])
def test_a_lowering_that_is_wrong_ends_the_build(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(pipeline, "optimize", optimize_with(fault))
    with pytest.raises(ParityError, match=r"differs from eager .*moe"):
        build(tmp_path)
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["parity"]["status"] == "failed"


def scaled(number):
    """A graph that multiplies x with a number, all in bfloat16."""
    half = ir.TensorType(ir.DataType.BFLOAT16)
    x = ir.Value(name="x", type=half, shape=ir.Shape(["n"]))
    stored = ir.tensor(np.array(number, ir.DataType.BFLOAT16.numpy()), name="c")
    c = ir.Value(name="c", type=half, shape=ir.Shape([]), const_value=stored)
    node = ir.node("Mul", [x, c])
    node.outputs[0].name, node.outputs[0].type = "y", half
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=[c], opset_imports={"": 20}, name="g"
    )
    return LoweredModel(ir.Model(graph, ir_version=10), ())


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((32**-0.5, 2.5), 32**-0.5),  # the scale of attention over 32 numbers
        ((32**-0.5, np.float32(32**-0.5).item()), 32**-0.5),
        ((2.5,), 0.1767578125),
        ((32**-0.5, 0.17676), 0.1767578125),  # it might be either
        ((), 0.1767578125),
    ],
)
def test_numbers_of_the_code_are_compared_as_pytorch_computes_with_them(numbers, expected):
    model = widen(scaled(32**-0.5), numbers).model
    (c,) = model.graph.initializers.values()
    assert c.const_value.dtype == ir.DataType.FLOAT
    assert c.const_value.numpy() == np.float32(expected)
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT


def test_numbers_in_code_are_those_of_functions_and_operators():
    def run():
        x = torch.ones(1, 1, 3, 32)
        y = torch.nn.functional.scaled_dot_product_attention(x * 0.3, x, x)
        return y / torch.tensor(7.5)

    assert numbers_in_code(run) >= {0.3, 7.5, 32**-0.5}


def test_eager_in_the_bundles_type_is_the_yardstick(tmp_path):
    bundle = build(tmp_path)
    record = json.loads((bundle.folder / "example" / "record.json").read_text())
    eager, cost = record["eager_rms"]["output"], bundle.manifest.parity["quantization"]["rms"]
    assert 1e-4 < eager < 2e-2
    bound = 2 * (eager**2 + cost**2) ** 0.5 + 1.5e-2
    assert record["allowed_rms"]["output"] == pytest.approx(bound, rel=0.01)
    assert [layer["num_experts"] for layer in record["layers"]] == [4]


@pytest.fixture
def gpu_here(monkeypatch):
    """``gpu_here(outcome)``: this machine has a GPU, on which a comparison ends so."""

    def here(outcome):
        def compare(bundle):
            if isinstance(outcome, Exception):
                raise outcome
            outputs = (OutputResult("output", outcome, allowed=0.1),)
            return ReplayReport("a GPU", 3, repeatable=True, outputs=outputs, layers=(), nodes=())

        monkeypatch.setattr(pipeline.gpu, "compute_capability", lambda: "9.0")
        monkeypatch.setattr(pipeline, "replay", compare)

    return here


def test_a_build_on_a_gpu_compares_there_too(tmp_path, gpu_here):
    gpu_here(0.01)
    bundle = build(tmp_path)
    assert bundle.verified
    assert bundle.parity()["device"]["outputs"][0]["rms"] == 0.01
    moe_export.load(bundle.folder)  # the hash of parity.json is the new one


def test_a_gpu_that_computes_something_else_fails_the_build(tmp_path, gpu_here):
    gpu_here(0.5)
    with pytest.raises(ParityError, match=r"does not compute on this GPU .*(?s:.)*output differs"):
        build(tmp_path)
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["parity"]["status"] == "failed"


def test_a_gpu_that_lacks_something_is_a_remark(tmp_path, gpu_here):
    gpu_here(EnvironmentLacksError("no onnxruntime-gpu"))
    bundle = build(tmp_path)
    assert bundle.manifest.parity["status"] == "graph"
    assert any("was not compared: no onnxruntime-gpu" in r for r in bundle.manifest.remarks)


def test_a_float32_model_for_gpus_has_the_bounds_of_float32(tmp_path):
    bundle = build(tmp_path, dtype="fp32")
    record = json.loads((bundle.folder / "example" / "record.json").read_text())
    assert record["eager_rms"] == {}
    assert record["allowed_rms"]["output"] < 2e-4
    assert BuildPlan(output=tmp_path, target="cuda").expert_weights == "source"
