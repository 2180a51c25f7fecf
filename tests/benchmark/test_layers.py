"""Work per layer, and its time beside the limits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import moe_export
from moe_export.benchmark.cases import draw_cases
from moe_export.benchmark.layer_weights import read_layer_weights
from moe_export.benchmark.layers import LayerProfiler, LayerWork, find_work
from moe_export.benchmark.profile import ProfiledRun
from moe_export.package.bundle import load
from tests.zoo.catalog import CLASSIC

ZOO = {layer.name: layer for layer in CLASSIC}


class FixedLimits:
    """A machine of known speed."""

    def read_bandwidth(self, size):
        return 1e9

    def multiply_rate(self, weight_type):
        return 2e9, "float32"


def sizes(bundle, path):
    layer = next(la for la in bundle.manifest.layers if la["path"] == path)
    return layer["experts"]


def stored_bytes(folder, path):
    """Bytes of the initializers that a layer's nodes read."""
    graph = onnx.load(folder / "model.onnx").graph
    sizes = {i.name: numpy_helper.to_array(i).nbytes for i in graph.initializer}
    nodes = [node for node in graph.node if node.name.startswith(f"{path or 'root'}/")]
    assert nodes
    experts = [node for node in nodes if node.op_type in ("GroupedExperts", "GroupedMatMul")]
    return sum(sizes.get(name, 0) for node in experts for name in node.input)


def test_expert_is_as_large_as_what_is_stored_of_it(digits_bundle):
    bundle = load(digits_bundle)
    found = read_layer_weights(digits_bundle / "model.onnx")
    assert [*found] == [la["path"] for la in bundle.manifest.layers]
    for path, weights in found.items():
        e = sizes(bundle, path)
        rows = e["intermediate_size"] * (2 if e["gated"] else 1)
        values = e["hidden_size"] * (rows + e["intermediate_size"])
        assert weights.expert_bytes * e["num_experts"] == stored_bytes(digits_bundle, path)
        assert weights.expert_bytes >= 4 * values  # packed weights are padded
        assert weights.row_operations == 2 * values
        assert weights.weight_type == "fp32"


def test_experts_of_another_form_count_all_their_matrices(tmp_path):
    layer = ZOO["dense_soft"]
    output = tmp_path / "bundle"
    moe_export.build(layer.make(), layer.inputs(), output=output, verify=False)
    ((path, weights),) = read_layer_weights(output / "model.onnx").items()
    graph = onnx.load(output / "model.onnx", load_external_data=False).graph
    assert sum(node.op_type == "GroupedMatMul" for node in graph.node) == 2
    assert weights.expert_bytes * layer.num_experts == stored_bytes(output, path)
    assert weights.expert_bytes >= 4 * weights.row_operations / 2 > 0


def test_work_is_that_of_the_experts_that_are_hit(digits_bundle):
    bundle = load(digits_bundle)
    cases = draw_cases(bundle, (1, 50), seed=0)
    weights = read_layer_weights(digits_bundle / "model.onnx")
    found = find_work(bundle, cases)
    for case in cases:
        for inputs, layers in zip(case.inputs, found[case.name], strict=True):
            for load_ in bundle.expert_load(inputs):
                own, stored = layers[load_.path], weights[load_.path]
                assert own.experts_hit == np.count_nonzero(load_.tokens_per_expert)
                assert own.read_bytes == own.experts_hit * stored.expert_bytes
                assert own.operations == load_.total * stored.row_operations
    assert all(layers["layers.0"].experts_hit == 2 for layers in found["1 token"])


@pytest.mark.parametrize(
    ("work", "share", "limited_by"),
    [
        (LayerWork(3, 4e6, 2e6, "fp32"), 0.5, "read"),  # 4 ms of 8, 1 ms of 8
        (LayerWork(3, 1e6, 12e6, "fp32"), 0.75, "arithmetic"),  # 1 ms of 8, 6 ms of 8
    ],
)
def test_share_is_the_longer_limit_over_the_time(
    digits_bundle, tmp_path, monkeypatch, work, share, limited_by
):
    bundle = load(digits_bundle, num_threads=1)
    (case,) = draw_cases(bundle, (1,), seed=0)
    layers = {"layers.0": work, "layers.1": work}
    profiler = LayerProfiler(bundle, {case.name: [layers] * 16}, FixedLimits(), tmp_path)
    profiler.turn(case, 0)

    def profile(path, paths):
        return [ProfiledRun(dict.fromkeys(paths, 8e-3))] * 9

    monkeypatch.setattr("moe_export.benchmark.layers.read_profile", profile)
    for layer in profiler.finish({case.name: 32e-3})[case.name]:
        assert layer.seconds == pytest.approx(8e-3)
        assert layer.share_of_run == pytest.approx(0.25)
        assert layer.share_of_limit == pytest.approx(share)
        assert layer.limited_by == limited_by


def test_every_layer_is_in_the_profile(digits_bundle, tmp_path):
    bundle = load(digits_bundle, num_threads=1)
    cases = draw_cases(bundle, (1, 50), seed=0)
    profiler = LayerProfiler(bundle, find_work(bundle, cases), FixedLimits(), tmp_path)
    for number in range(2):
        for case in cases:
            profiler.turn(case, number)
    found = profiler.finish({case.name: 1.0 for case in cases})
    for case in cases:
        assert [layer.path for layer in found[case.name]] == ["layers.0", "layers.1"]
        assert all(layer.seconds > 0 for layer in found[case.name])
