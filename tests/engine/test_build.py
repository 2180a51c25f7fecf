"""Engines built by TensorRT-RTX without a GPU: the real parser and builder see our plugins."""

from __future__ import annotations

import warnings

import numpy as np
import onnx_ir as ir
import pytest
import torch

import moe_export
from moe_export.engine.build import build_engine
from moe_export.engine.environment import EngineEnvironment
from moe_export.errors import EnvironmentLacksError, MoeExportError, UnsupportedModelError
from moe_export.ops.spec import DOMAIN, GroupedExperts, TopKGating
from moe_export.plan import AxisSpec, BuildPlan
from moe_export.progress import SilentProgress
from moe_export.replay import probe_runner
from moe_export.replay.probe import make_probe
from tests.engine import models

SM80 = {"target": "tensorrt-rtx", "compute_capabilities": ("8.0",)}


# A range on one of the inputs that share the axis.
TOKENS = (AxisSpec("input_ids", 1, 1, 512),)


@pytest.mark.parametrize(
    ("make", "options", "weight_type"),
    [
        (
            models.mixtral,
            {"dtype": "bf16", "weights": "fp8", "dynamic": TOKENS, "verify": False},
            "fp8",
        ),
        (models.qwen3_moe, {"dtype": "fp16", "with_past": True}, "fp16"),
        (models.deepseek_v3, {"dtype": "fp16", "weights": "int8", "verify": False}, "int8"),
        (models.gpt_oss, {"dtype": "bf16", "weights": "int4", "block_size": 32}, "int4"),
    ],
)
def test_every_layer_of_a_family_is_two_plugins(plugins, tmp_path, make, options, weight_type):
    model, progress = models.seeded(make), SilentProgress()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    bundle = moe_export.build(
        model, output=tmp_path / "bundle", progress=progress, **SM80, **options
    )
    manifest = bundle.manifest
    for layer in manifest.layers:
        assert layer["router"] == "TopKGating"
        assert layer["weights"]["weight_type"] == weight_type
        assert layer["weights"]["layout"] == "cuda_v1"
    assert set(manifest.engine.plugins) == {"GroupedExperts", "TopKGating"}
    assert manifest.engine.compute_capabilities == ("8.0",)
    assert manifest.engine.dtype == options["dtype"]
    assert (bundle.folder / manifest.engine.plan).stat().st_size > 10_000
    assert any(remark.startswith("the engine takes batch 1 to 8") for remark in progress.remarks)
    longest = 512 if "dynamic" in options else 2048
    assert manifest.engine.profiles[0]["input_ids"][2] == (8, longest)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    assert not bundle.verified
    compared = options.get("verify", True)
    assert manifest.parity["status"] == ("graph" if compared else "skipped")
    if compared:
        assert manifest.parity["disagreeing_tokens"] == 0
        assert manifest.parity["max_error"] < 2e-5


@pytest.mark.parametrize("options", [{"dtype": "fp16"}, {}])
def test_a_layer_of_ones_own_runs_in_float32_around_its_experts(plugins, tmp_path, options):
    model, example = models.seeded(models.Net), torch.randn(5, 64)
    bundle = moe_export.build(
        model,
        example,
        output=tmp_path / "b",
        dynamic=(AxisSpec("x", 0, 1, 256),),
        **SM80,
        **options,
    )
    engine = bundle.manifest.engine
    assert engine.profiles == ({"x": ((1, 64), (5, 64), (256, 64))},)
    assert engine.dtype == options.get("dtype", "fp32")
    told = any("the source is in float32" in remark for remark in bundle.manifest.remarks)
    assert told == (not options)


EXPERTS = GroupedExperts(
    num_experts=4, hidden_size=64, intermediate_size=64, weight_type="fp16", weight_layout="cuda_v1"
)
GATING = TopKGating(top_k=2)


def write_layer(path, experts=None, gating=None, x=("T", 64), weight=ir.DataType.INT8):
    """An ONNX file of one layer; ``experts`` and ``gating`` replace attributes of its nodes."""
    half = ir.TensorType(ir.DataType.FLOAT16)
    rows = ir.Value(name="x", type=half, shape=ir.Shape(x))
    logits = ir.Value(
        name="logits", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["T", 4])
    )
    stored = []
    for name, shape in EXPERTS.weight_shapes().items():
        tensor = ir.tensor(np.zeros(shape, weight.numpy()), name=name)
        kind = ir.TensorType(tensor.dtype)
        stored.append(ir.Value(name=name, type=kind, shape=ir.Shape(shape), const_value=tensor))
    route = ir.node(
        "TopKGating",
        [logits],
        gating or GATING.to_onnx(),
        domain=DOMAIN,
        name="route",
        num_outputs=2,
    )
    route.outputs[0].name, route.outputs[1].name = "ids", "weights"
    node = ir.node(
        "GroupedExperts",
        [rows, *route.outputs, *stored],
        experts or EXPERTS.to_onnx(),
        domain=DOMAIN,
        name="experts",
    )
    node.outputs[0].name = "y"
    node.outputs[0].type = half
    graph = ir.Graph(
        [rows, logits],
        node.outputs,
        nodes=[route, node],
        initializers=stored,
        opset_imports={"": 20, DOMAIN: 1},
        name="layer",
    )
    ir.save(ir.Model(graph, ir_version=10), path)


LAYERS = {"route": "TopKGating", "experts": "GroupedExperts"}


def build_layer(plugins, tmp_path, layers=LAYERS, **options):
    write_layer(tmp_path / "layer.onnx", **options)
    plan = BuildPlan(output=tmp_path, **SM80)
    environment = EngineEnvironment(plugins, ("8.0",), use_gpu=False)
    profile = {"x": ((1, 64), (8, 64), (64, 64)), "logits": ((1, 4), (8, 4), (64, 4))}
    return build_engine(
        tmp_path / "layer.onnx", tmp_path / "layer.plan", plan, environment, profile, layers
    )


def test_a_layer_by_hand_is_built(plugins, tmp_path):
    built = build_layer(plugins, tmp_path)
    assert {name: kind for name, (kind, _) in built.plugins.items()} == {
        "route": "TopKGating",
        "experts": "GroupedExperts",
    }
    assert (tmp_path / "layer.plan").stat().st_size > 0


def without(attributes, name, **added):
    return {n: v for n, v in attributes.to_onnx().items() if n != name} | added


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"experts": EXPERTS.to_onnx() | {"activation": "swish"}},
            r"experts_attributes: activation must be one of silu, .*'swish' \(experts\)",
        ),
        (
            {"gating": GATING.to_onnx() | {"top_k": 5}},
            r"gating_c2: top_k = 5 exceeds the 4 experts of logits \(route\)",
        ),
        (
            {"experts": without(EXPERTS, "alpha", alfa=1.0)},
            r"experts_attributes: the node needs attribute alpha .*\(experts\)",
        ),
        ({"x": ("T", 1, 64)}, r"experts_c1: x must be \[T, H = 64\]; found \[\?, 1, 64\]"),
        ({"x": ("T", 32)}, r"experts_c1: x must be \[T, H = 64\]; found \[\?, 32\]"),
        ({"weight": ir.DataType.UINT8}, r"experts_inputs: up_weight must be int8"),
    ],
    ids=["value", "contradiction", "misspelled", "rank", "size", "type"],
)
def test_a_node_that_breaks_the_contract_is_refused_by_name(plugins, tmp_path, options, said):
    with pytest.raises(UnsupportedModelError, match=f"(?s)tensorrt-rtx: its parser .*{said}"):
        build_layer(plugins, tmp_path, **options)


def test_gpus_that_it_does_not_build_for_are_named(plugins, tmp_path):
    write_layer(tmp_path / "layer.onnx")
    plan = BuildPlan(output=tmp_path, **SM80)
    environment = EngineEnvironment(plugins, ("7.0",), use_gpu=False)
    profile = {"x": ((1, 64),) * 3, "logits": ((1, 4),) * 3}
    with pytest.raises(UnsupportedModelError, match=r"capabilities .*8\.0, .*asked for was 7.0"):
        build_engine(tmp_path / "layer.onnx", tmp_path / "p", plan, environment, profile, LAYERS)


def test_a_library_that_is_none_is_refused(plugins, tmp_path):
    write_layer(tmp_path / "layer.onnx")
    (tmp_path / "plugins.so").write_text("no library")
    plan = BuildPlan(output=tmp_path, **SM80)
    environment = EngineEnvironment(tmp_path / "plugins.so", ("8.0",), use_gpu=False)
    with pytest.raises(EnvironmentLacksError, match="the plugin library does not load"):
        build_engine(tmp_path / "layer.onnx", tmp_path / "p", plan, environment, {}, {})


def test_a_process_that_dies_leaves_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setattr("moe_export.engine.build.worker.__name__", "moe_export.no_such_module")
    environment = EngineEnvironment(tmp_path / "plugins.so", ("8.0",), use_gpu=False)
    plan = BuildPlan(output=tmp_path, **SM80)
    with pytest.raises(MoeExportError, match=r"(?s)ended with 1 and no answer.*no_such_module"):
        build_engine(tmp_path / "m.onnx", tmp_path / "p", plan, environment, {}, {})


@pytest.mark.parametrize("found", [{"experts": "TRT_MoE"}, {"other": "GroupedExperts"}])
def test_a_node_that_is_another_layer_is_an_error_before_the_build(plugins, tmp_path, found):
    with pytest.raises(UnsupportedModelError, match=r"no layer for .*; it has TopKGating route"):
        build_layer(plugins, tmp_path, layers=LAYERS | found)
    assert not (tmp_path / "layer.plan").exists()


@pytest.mark.parametrize("make", [models.qwen3_moe])
def test_the_graph_in_half_precision_computes_what_eager_computes(tmp_path, make):
    loaded, graph = models.lowered(models.seeded(make), tmp_path, "fp16")
    ids = np.random.default_rng(0).integers(0, 97, (3, 7))
    mask = np.ones_like(ids)
    mask[1, :2] = 0
    arrays = {"input_ids": ids, "attention_mask": mask}
    expected = loaded.run({name: torch.from_numpy(a) for name, a in arrays.items()})["logits"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's on infinities in masks
        found = models.run_in_numpy(graph.model, arrays)["logits"]
    kept = mask.astype(bool)
    error = np.abs(found.astype(np.float32) - expected.numpy())[kept].max()
    assert error < 4e-3 * np.abs(expected.numpy()[kept]).max()


def test_a_probe_of_a_bundle_becomes_an_engine_of_its_own(plugins, tmp_path, monkeypatch):
    bundle = moe_export.build(
        models.seeded(models.Net), torch.randn(5, 64), output=tmp_path / "b", dtype="bf16", **SM80
    )
    environment = EngineEnvironment(plugins, ("8.0",), use_gpu=False)
    monkeypatch.setattr("moe_export.engine.environment.find_environment", lambda _: environment)
    opened = []
    monkeypatch.setattr(
        probe_runner, "open_plan", lambda plan, *_: opened.append(plan.stat().st_size)
    )
    probe = make_probe(bundle.folder / "model.onnx")
    inputs = {"x": np.zeros((3, 64), np.float32)}
    probe_runner.open_probe(bundle, probe, inputs)
    assert opened[0] > 10_000
    assert len(probe.model.graph.outputs) == 1 + len(probe.outputs)
