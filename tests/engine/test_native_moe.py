"""TensorRT's own MoE layer, as TensorRT-RTX parses it and starts to build it."""

from __future__ import annotations

import dataclasses
import re
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

import moe_export
from moe_export.engine import stage
from moe_export.engine.build import BuiltEngine, build_engine
from moe_export.engine.environment import EngineEnvironment
from moe_export.engine.moe_choice import describe_choice
from moe_export.engine.stage import moe_layers
from moe_export.errors import UnsupportedModelError
from moe_export.ops.spec import TopKGating
from moe_export.pack.model_file import pack
from moe_export.pack.native_moe import native_nodes
from moe_export.pack.stored_layers import stored_layers
from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress
from moe_export.quantize.stage import quantize
from tests.engine import models
from tests.engine.trt_moe import TRT_MoE, parsed_layers

RTX = {"target": "tensorrt-rtx", "moe": "native"}


def packed(make, folder, dtype):
    """The file of a family with native layers, with its plan and what eager computes."""
    plan = BuildPlan(output=folder, dtype=dtype, **RTX)
    loaded, lowered = models.lowered(models.seeded(make), folder, dtype)
    smaller = quantize(lowered, plan, SilentProgress())
    return loaded, pack(smaller, folder, plan.target, native=True)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    return packed(models.qwen3_moe, tmp_path_factory.mktemp("qwen3"), "fp16")


def test_every_layer_is_parsed_as_one(plugins, qwen3, tmp_path):
    check_layers(qwen3[1], plugins, tmp_path, "HALF", 48)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "dtype", "kind", "width"),
    [(models.mixtral, "bf16", "BF16", 96), (models.deepseek_v3, "fp16", "HALF", 48)],
)
def test_every_layer_of_a_family_is_parsed_as_one(plugins, tmp_path, make, dtype, kind, width):
    check_layers(packed(make, tmp_path, dtype)[1], plugins, tmp_path, kind, width)


def check_layers(written, plugins, scratch, kind, width):
    """Two layers, a router and TensorRT's own MoE layer each, all inputs in their places."""
    layers = parsed_layers(written.path, plugins, scratch)
    assert {name: layer["op"] for name, layer in layers.items()} == {
        f"model.layers.{number}.mlp.experts/{op}": op
        for number in range(2)
        for op in ("TopKGating", "TRT_MoE")
    }
    up, down = [8, 64, width], [8, width, 64]
    for layer in layers.values():
        if layer["op"] == "TRT_MoE":
            assert layer["activation"] == "SILU"
            tokens = [[1, -1, size] for size in (64, 2, 2)]
            assert layer["shapes"] == [*tokens, up, up, down]
            assert layer["types"] == [kind, "INT32", *[kind] * 4]
            assert layer["output"] == [1, -1, 64]
    for stored in stored_layers(written).values():
        assert stored.layout == "native"
        assert stored.weight_type == {"BF16": "bf16", "HALF": "fp16"}[kind]
        assert stored.bytes == 3 * 8 * 64 * width * 2
        assert stored.float32_bytes == 2 * stored.bytes


def test_the_written_file_computes_what_eager_computes(qwen3):
    loaded, written = qwen3
    ids = np.random.default_rng(0).integers(0, 97, (3, 7))
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    expected = loaded.run(inputs)["logits"].numpy()
    ops = [models.op(TopKGating, models._gating), TRT_MoE]
    evaluator = ReferenceEvaluator(onnx.load(written.path), new_ops=ops)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's on infinities in masks
        (found,) = evaluator.run(["logits"], arrays)
    error = np.abs(found.astype(np.float32) - expected).max()
    assert error < 4e-3 * np.abs(expected).max()


@pytest.mark.slow
def test_layers_that_it_does_not_take_are_named(tmp_path):
    _, lowered = models.lowered(models.seeded(models.gpt_oss), tmp_path, "bf16")
    with pytest.raises(UnsupportedModelError) as caught:
        pack(lowered, tmp_path, native=True)
    assert "model.layers.0.mlp.experts, model.layers.1.mlp.experts: factors" in str(caught.value)
    assert not list(tmp_path.iterdir())


def build_on(capability, written, plugins, profile):
    plan = BuildPlan(output=written.folder, **RTX)
    environment = EngineEnvironment(plugins, (capability,), use_gpu=False)
    layers = moe_layers(ir.load(written.path))
    return build_engine(written.path, written.folder / "plan", plan, environment, profile, layers)


def profile():
    return dict.fromkeys(("input_ids", "attention_mask"), ((1, 1), (2, 8), (8, 64)))


def test_the_builder_finds_the_weights_in_the_order_that_it_reads(plugins, qwen3):
    """SM120 has no such layer: the builder accepts its shapes, then finds no kernel for it."""
    written = qwen3[1]
    with pytest.raises(UnsupportedModelError, match=r"(?s)no engine was built.*moe_fc1") as caught:
        build_on("12.0", written, plugins, profile())
    assert "shape inference" not in str(caught.value)
    assert "2 layers are TensorRT's own MoE layer" in str(caught.value)
    assert "--moe plugin takes this package's plugins" in str(caught.value)


def test_the_builder_refuses_the_contracts_own_order(plugins, qwen3):
    model = ir.load(qwen3[1].path)
    for node in native_nodes(model):
        for value in node.inputs[3:6]:
            turned = np.ascontiguousarray(value.const_value.numpy().transpose(0, 2, 1))
            value.const_value = ir.tensor(turned, name=value.name)
            value.shape = ir.Shape(turned.shape)
    written = dataclasses.replace(qwen3[1], name="turned.onnx")
    ir.save(model, written.path)
    with pytest.raises(UnsupportedModelError, match=r"(?s)during shape inference of.*TRT_MoE"):
        build_on("12.0", written, plugins, profile())


@pytest.mark.slow  # the parser has seen such a graph above
def test_a_build_goes_as_far_as_the_gpus_that_tensorrt_rtx_knows(plugins, tmp_path):
    progress = SilentProgress()
    with pytest.raises(UnsupportedModelError, match=r"capabilities .*8\.0.*asked for was 10\.0"):
        moe_export.build(
            models.seeded(models.qwen3_moe),
            output=tmp_path / "bundle",
            dtype="bf16",
            verify=False,
            compute_capabilities=("10.0",),
            progress=progress,
            **RTX,
        )
    assert any("2 layers are TensorRT's own MoE layer, in bf16" in r for r in progress.remarks)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_a_bundle_says_which_layers_are_native(plugins, tmp_path, monkeypatch):
    """As if TensorRT built it, which takes a GPU that has the layer."""

    def build(model, plan_file, plan, environment, profile, layers):
        plan_file.write_bytes(b"engine")
        found = {name: (kind, "1") for name, kind in layers.items() if kind == "TopKGating"}
        assert len(found) == len(layers) - 2 == 2
        return BuiltEngine("1.7", found)

    monkeypatch.setattr(stage, "build_engine", build)
    options = {"dtype": "bf16", "compute_capabilities": ("10.0",), **RTX}
    bundle = moe_export.build(
        models.seeded(models.qwen3_moe), output=tmp_path / "bundle", verify=False, **options
    )
    assert [layer["weights"]["layout"] for layer in bundle.manifest.layers] == ["native"] * 2
    assert bundle.manifest.engine.plugins == {"TopKGating": "1"}
    assert any("TensorRT's own MoE layer, in bf16" in r for r in bundle.manifest.remarks)


@pytest.mark.parametrize(
    ("moe", "capabilities", "said"),
    [
        ("native", ("10.0", "11.0"), "all 3 layers are TensorRT's own MoE layer, in bf16.*parsed"),
        ("auto", ("10.0", "10.3"), "all 3 layers are this package's plugins.*--moe native takes"),
        ("auto", ("10.0", "12.0"), None),
        ("auto", ("8.0",), None),
        ("plugin", ("10.0",), None),
    ],
)
def test_what_became_of_the_layers_is_said_where_there_is_a_choice(
    tmp_path, moe, capabilities, said
):
    plan = BuildPlan(output=tmp_path, target="tensorrt", dtype="bf16", moe=moe)
    environment = EngineEnvironment(tmp_path / "plugins.so", capabilities, use_gpu=False)
    found = describe_choice(plan, environment, 3)
    assert (found is None) == (said is None)
    assert said is None or re.search(said, found)
