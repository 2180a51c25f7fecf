"""Smaller weights: what they cost is told apart from what is wrong about them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import moe_export
from moe_export.errors import ParityError, UsageError
from moe_export.lower.expert_tensor import read_expert
from moe_export.lower.stored_weights import expert_nodes, stored_parts, stored_tensor
from moe_export.ops.dequantize import E2M1_VALUES, dequantize
from moe_export.pack import packed_weights
from moe_export.pack.model_file import pack
from moe_export.pack.stored_layers import stored_layers
from moe_export.package.bundle import UnverifiedBundleWarning
from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress
from moe_export.quantize.stage import quantize
from moe_export.runners.onnxruntime import OnnxRuntimeRunner
from moe_export.tolerances import KERNEL_TOLERANCES
from moe_export.verify.keep_layers import find_kept_layers, mix, smallest_count
from moe_export.verify.kernel_error import compare_kernels
from moe_export.verify.quantization import measure_outputs, measure_quantization
from moe_export.verify.quantization_report import ErrorSum
from moe_export.verify.report import ParityReport
from tests.verify.rounded import PATHS, E, H, Model, export_model

ROUNDED = [
    {"weights": "fp16"},
    {"weights": "bf16"},
    {"weights": "int8"},
    {"weights": "int4"},
    {"weights": "int4", "block_size": 32, "zero_points": True},
]
# Relative RMS errors of a layer with random weights: the weights' own rounding, and that of the
# activations inside the kernel.
LAYER_BOUNDS = {"fp16": 1e-3, "bf16": 1e-2, "int8": 3e-2, "int4": 0.2}


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    return export_model(Model())


def measure(exported, folder, **options):
    exact, packed = exported.exact(folder), exported.round(folder, **options)
    cases = exported.cases(exact)
    plan = exported.plan(**options)
    return measure_quantization(exact, packed, exported.library, cases, plan, SilentProgress())


@pytest.mark.parametrize("options", ROUNDED, ids=str)
def test_rounding_is_measured_and_is_no_failure(exported, tmp_path, options):
    report = measure(exported, tmp_path, **options)
    kind = options["weights"]
    assert report.failures() == []
    assert [layer.path for layer in report.layers] == list(PATHS)
    for layer in report.layers:
        assert layer.stored.weight_type == kind
        assert 0 < layer.error.rms < LAYER_BOUNDS[kind]
        assert set(layer.kernel_errors) == {"few tokens", "many tokens"}
        assert layer.rerouted <= layer.tokens == 256
    assert 0 < report.outputs["output"].rms < LAYER_BOUNDS[kind]
    parity = ParityReport((), (), ()).with_quantization(report)
    assert parity.passed
    assert parity.summary()["quantization"]["rms"] == report.error.rms
    assert parity.to_json()["quantization"]["layers"][0]["stored"]["weight_type"] == kind


def swap_nibbles(parts):
    codes = parts["weight"].view(np.uint8)
    return {**parts, "weight": (codes << 4 | codes >> 4).view(np.int8)}


def roll_scales(parts):
    return {**parts, "scale": np.roll(parts["scale"], 1, axis=0)}


def shift_zeros(parts):
    return {**parts, "zero": parts["zero"] ^ 1}


def roll_columns(parts):
    return {**parts, "weight": np.roll(parts["weight"], 1, axis=1)}


def break_packing(monkeypatch, fault, kind):
    """Let ``fault`` change the parts of weights of one type before they are packed."""
    right = packed_weights.pack_rows

    def wrong(weight_type, weight, scale=None, zero=None, **rest):
        given = {"weight": weight, "scale": scale, "zero": zero}
        parts = {part: array for part, array in given.items() if array is not None}
        return right(weight_type, **(fault(parts) if weight_type == kind else parts), **rest)

    monkeypatch.setattr(packed_weights, "pack_rows", wrong)


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        (swap_nibbles, ROUNDED[3]),
        (shift_zeros, ROUNDED[4]),
        (roll_scales, ROUNDED[4]),
        (roll_columns, ROUNDED[1]),
        (roll_columns, ROUNDED[2]),
    ],
)
def test_weights_that_are_packed_wrongly_fail(exported, tmp_path, monkeypatch, fault, options):
    break_packing(monkeypatch, fault, options["weights"])
    packed = exported.round(tmp_path, **options)
    for path in PATHS:
        errors = compare_kernels(packed, path, exported.library, 0)
        assert min(errors.values()) > KERNEL_TOLERANCES[options["weights"]]


def test_a_wrong_kernel_breaks_parity_and_is_named(exported, tmp_path):
    report = measure(exported, tmp_path, weights="int8")
    broken = dataclasses.replace(report.layers[1], kernel_errors={"few tokens": 0.5})
    report = dataclasses.replace(report, layers=(report.layers[0], broken))
    parity = ParityReport((), (), ()).with_quantization(report)
    assert not parity.passed
    assert parity.first_diverging_layer == "gated#2"
    (failure,) = parity.failures
    assert failure.startswith("gated#2: the int8 kernel differs")


def test_a_build_with_weights_packed_wrongly_names_the_layer_and_is_kept(monkeypatch, tmp_path):
    break_packing(monkeypatch, swap_nibbles, "int4")
    torch.manual_seed(0)
    with pytest.raises(ParityError, match=r"(?s)first diverging layer: gated.*the int4 kernel"):
        moe_export.build(Model(), torch.randn(6, H), output=tmp_path / "b", weights="int4")
    with pytest.warns(UnverifiedBundleWarning, match="failed its comparison"):
        bundle = moe_export.load(tmp_path / "b")
    assert bundle.parity()["max_error"] < 1e-5  # lowering is right
    assert sorted(path.name for path in (tmp_path / "b").glob("*.onnx*")) == [
        "model.onnx",
        "model.onnx.data",
    ]


def test_outputs_that_are_not_finite_fail(exported, tmp_path):
    total = ErrorSum()
    total.add(np.float32([1, np.nan]), np.float32([1, 2]))
    report = measure(exported, tmp_path, weights="int8")
    report = dataclasses.replace(report, outputs={"logits": total.error()})
    assert report.failures() == ["logits is not finite with rounded weights"]


def test_errors_add_up_over_cases():
    total = ErrorSum()
    total.add(np.float32([3, 4]), np.float32([3, 5]))
    total.add(np.float32([-10.5, np.inf]), np.float32([-10, np.inf]))
    found = total.error()
    assert found.largest == pytest.approx(1 / 10)
    assert found.rms == pytest.approx(np.sqrt(1.25 / 134))
    assert ErrorSum().error().rms == 0


def test_nodes_of_one_module_share_their_rounded_weights(exported, tmp_path):
    packed = exported.round(tmp_path, weights="int4")
    nodes = [node for node, a in expert_nodes(packed.graph) if node.op_type == "GroupedExperts"]
    assert len(nodes) == 2
    assert list(nodes[0].inputs[3:]) == list(nodes[1].inputs[3:])
    assert not any(name.endswith("_weight") for name in packed.graph.graph.initializers)


def test_only_experts_are_rounded(exported):
    rounded = quantize(exported.lowered, exported.plan(weights="int4"), SilentProgress())
    before, after = exported.lowered.model.graph, rounded.model.graph
    experts = {v.name for n, _ in expert_nodes(exported.lowered.model) for v in n.inputs[1:]}
    for name, value in before.initializers.items():
        if name not in experts or name.endswith("bias"):
            assert after.initializers[name].const_value is value.const_value
    assert {a.weight_type for _, a in expert_nodes(exported.lowered.model)} == {"fp32"}


def test_kept_layers_stay_in_float32(exported, tmp_path):
    packed = exported.round(tmp_path, keep=("normed",), weights="int4")
    found = {path: layer.weight_type for path, layer in stored_layers(packed).items()}
    assert found == {"gated": "int4", "normed": "fp32", "gated#2": "int4"}


# Keeping layers.


def test_fewest_layers_are_kept(exported, tmp_path):
    exact, packed = exported.exact(tmp_path), exported.round(tmp_path, weights="int4")
    cases, library = exported.cases(exact), exported.library

    def find(bound):
        return find_kept_layers(exact, packed, bound, library, cases, SilentProgress())

    all_rounded = measure_outputs(packed.path, library, cases)["output"].rms
    assert find(all_rounded * 1.01) == ()
    # Calls of one module share its weights: they are kept together.
    assert set(find(all_rounded * 0.99)) in ({"normed"}, {"gated", "gated#2"})
    assert set(find(1e-5)) == set(PATHS)
    with pytest.raises(UsageError, match=r"even with all experts in float32.* --max-error 1e-12"):
        find(1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "float32.onnx",
        "float32.onnx.data",
        "model.onnx",
        "model.onnx.data",
    ]


def test_a_candidate_computes_what_rounding_fewer_layers_gives(exported, tmp_path):
    exact, packed = exported.exact(tmp_path), exported.round(tmp_path, weights="int4")
    ir.save(mix(exact, packed, ("normed",)), tmp_path / "candidate.onnx")
    (tmp_path / "other").mkdir()
    direct = exported.round(tmp_path / "other", keep=("normed",), weights="int4")
    inputs = {"x": np.random.default_rng(0).standard_normal((7, H), np.float32)}
    runs = [
        OnnxRuntimeRunner(path, exported.library).run(inputs)["output"]
        for path in (tmp_path / "candidate.onnx", direct.path)
    ]
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("needed", range(6))
def test_bisection_finds_the_smallest_count(needed):
    tried = []

    def error_of(count):
        tried.append(count)
        return 0.5 if count >= needed else 2.0

    assert smallest_count(5, 1.0, error_of) == needed
    assert len(tried) <= 5
    assert smallest_count(5, 0.1, error_of) is None


# Types that follow from the weights.


def rewrite_experts(model, change):
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "experts" in name and "norm" not in name and name.endswith("weight"):
                tensor.copy_(torch.from_numpy(change(tensor.numpy())))
    return model


def to_mxfp4(weight):
    codes = np.random.default_rng(weight.size).integers(0, 16, weight.shape)
    powers = np.repeat(np.arange(weight.shape[1] // 32) - 6, 32)
    return np.ldexp(E2M1_VALUES[codes], powers).astype(np.float32)


def test_the_narrowest_type_without_rounding_is_found_by_layer():
    torch.manual_seed(0)
    model = Model()
    rewrite_experts(model.gated, to_mxfp4)
    model.normed.to(torch.bfloat16).to(torch.float32)
    lowered = export_model(model).lowered
    plan = BuildPlan(output=Path("unused"), weights="source")
    rounded = quantize(lowered, plan, SilentProgress()).model
    found = [(n.op_type, a.weight_type) for n, a in expert_nodes(rounded)]
    assert sorted(set(found)) == [("GroupedExperts", "mxfp4"), ("GroupedMatMul", "bf16")]
    originals = {node.name: (node, a) for node, a in expert_nodes(lowered.model)}
    for node, attributes in expert_nodes(rounded):
        before, plain = originals[node.name]
        for matrix in attributes.matrices:
            parts = stored_parts(node, attributes, matrix)
            stored = {p: read_expert(stored_tensor(v), 1) for p, v in parts.items()}
            weight = stored_parts(before, plain, matrix)["weight"]
            expected = read_expert(stored_tensor(weight), 1)
            restored = dequantize(attributes.storage, stored, matrix.columns)
            assert np.array_equal(restored.view(np.uint32), expected.view(np.uint32))


def test_weights_that_are_no_mxfp4_are_refused_before_anything_is_written(exported):
    with pytest.raises(UsageError, match=r"GroupedExperts: up_weight of expert 0: its weights are"):
        quantize(exported.lowered, exported.plan(weights="mxfp4"), SilentProgress())


def test_a_weight_that_cannot_be_rounded_is_named_when_it_is_written(tmp_path):
    torch.manual_seed(0)
    model = Model()
    with torch.no_grad():
        model.gated.experts[E - 1].down.weight[0, 0] = 1e6
    plan = BuildPlan(output=Path("unused"), weights="fp16")
    lowered = quantize(export_model(model).lowered, plan, SilentProgress())
    with pytest.raises(UsageError, match=r"down_weight of expert 3: its largest weight, 1e\+06"):
        pack(lowered, tmp_path)
