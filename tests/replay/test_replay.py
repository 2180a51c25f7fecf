"""What ``verify`` says of a bundle: on the CPU, and on kernels of a GPU that are run on the CPU."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import moe_export
from moe_export.cli.main import main
from moe_export.errors import EnvironmentLacksError, UsageError
from moe_export.package.bundle import Bundle, UnverifiedBundleWarning
from moe_export.replay.compare import replay
from tests.engine import models
from tests.plugins.cuda.on_cpu import LIBRARY, MISSING, LibraryOnCpu
from tests.replay.stand_in import StandInGpu, bundle_graph


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cpu"))


def build(folder, **options):
    model, x = models.seeded(models.Net), torch.randn(5, 64)
    return moe_export.build(model, x, output=folder / "bundle", **options)


def test_a_bundle_for_the_cpu_is_compared_without_pytorch(on_cpu):
    found = CliRunner().invoke(main, ["verify", str(on_cpu.folder), "--json"])
    report = json.loads(found.stdout)
    assert (found.exit_code, report["passed"], report["repeatable"]) == (0, True, True)
    assert [layer["rerouted"] for layer in report["layers"]] == [0]
    assert report["outputs"][0]["rms"] < 1e-5
    errors = {node["op"]: node["error"] for node in report["nodes"]}
    assert errors["TopKGating"] < 1e-5
    assert errors["GroupedExperts"] is None  # packed for CPUs, which the build compared


def test_people_see_a_table_and_a_verdict(on_cpu):
    found = CliRunner().invoke(main, ["verify", str(on_cpu.folder)])
    assert found.exit_code == 0
    assert "verified on the CPU, in ONNX Runtime: 3 runs gave the same bits" in found.output


def test_a_portable_bundle_is_compared_node_by_node(tmp_path):
    report = replay(build(tmp_path, target="portable"))
    assert report.passed
    assert all(node.error < 1e-5 for node in report.nodes)


def test_a_bundle_that_was_not_compared_says_so(tmp_path):
    bundle = build(tmp_path, verify=False)
    with pytest.raises(UsageError, match=r"no record of eager PyTorch .* without --no-verify"):
        replay(bundle)


def test_numbers_that_are_wrong_fail_the_command(on_cpu, monkeypatch):
    run = Bundle.run
    monkeypatch.setattr(Bundle, "run", lambda *args: {n: 1.001 * a for n, a in run(*args).items()})
    found = CliRunner().invoke(main, ["verify", str(on_cpu.folder)])
    assert found.exit_code == 1
    assert "output differs from eager by 1.0e-03 (RMS, allowed 1.0e-04)" in found.output


def test_runs_that_differ_fail_the_command(on_cpu, monkeypatch):
    run, noise = Bundle.run, iter((0.0, 1e-7, 0.0))

    def noisy(*args):
        step = np.float32(next(noise))
        return {name: array + step for name, array in run(*args).items()}

    monkeypatch.setattr(Bundle, "run", noisy)
    assert replay(on_cpu).failures == ("3 runs on the same input gave different bits",)


@pytest.fixture(scope="module")
def gpu_bundle(tmp_path_factory):
    if not LIBRARY.exists():
        pytest.skip(MISSING)
    folder = tmp_path_factory.mktemp("gpu")
    bundle = moe_export.build(
        models.seeded(models.mixtral), output=folder / "b", target="cuda", dtype="bf16"
    )
    library = LibraryOnCpu(80, folder)
    library.need(*(f"{kind}_bf16_bf16_m16" for kind in ("gated_matmul", "matmul")))
    gpu = StandInGpu(library, bundle.folder, "bf16")
    seen = {}

    def run(graph, inputs):
        if graph not in seen:
            seen[graph] = gpu.run(graph, inputs)
        return seen[graph]

    return bundle, run


@pytest.fixture
def gpu_runs(gpu_bundle, monkeypatch):
    """``gpu_runs(change)``: the bundle runs on the stand-in; ``change`` may alter what it shows."""
    bundle, run = gpu_bundle
    own = bundle_graph(bundle.folder)

    def let(change=lambda _: None):
        def shown(graph, inputs):
            values = {name: array.copy() for name, array in run(graph, inputs).items()}
            change(values)
            return values

        monkeypatch.setattr(Bundle, "run", lambda _, inputs: shown(own, inputs))
        monkeypatch.setattr(
            Bundle,
            "open_graph",
            lambda _, graph: SimpleNamespace(run=lambda inputs: shown(graph, inputs)),
        )
        return replay(bundle)

    return let


def test_a_build_for_gpus_proves_its_graph_and_says_what_is_left(gpu_bundle):
    bundle, _ = gpu_bundle
    assert bundle.manifest.parity["status"] == "graph"
    assert bundle.manifest.parity["max_error"] < 2e-5
    assert bundle.manifest.parity["disagreeing_tokens"] == 0
    assert bundle.manifest.batch_coupled is False
    assert sorted(p.name for p in (bundle.folder / "lib").iterdir()) == [
        "libmoe_export_cuda.so",
        "libmoe_export_ort.so",
    ]
    with pytest.warns(UnverifiedBundleWarning, match=r"its graph agrees .* moe-export verify does"):
        moe_export.load(bundle.folder)


def test_without_a_gpu_it_does_not_run(gpu_bundle):
    bundle, _ = gpu_bundle
    found = CliRunner().invoke(main, ["verify", str(bundle.folder)])
    assert found.exit_code == EnvironmentLacksError.exit_code
    assert "no GPU is found here" in found.output


def test_the_gpus_kernels_compute_the_model_as_well_as_eager_does_in_bfloat16(gpu_runs):
    report = gpu_runs()
    assert report.passed
    assert all(0 < node.error < 2.5e-2 for node in report.nodes)
    (output,) = report.outputs
    assert 0 < output.rms < 2 * output.eager_rms + 1e-3


def test_experts_that_are_wrong_are_named(gpu_runs):
    def change(values):
        if "grouped_experts_1.shown" in values:
            values["grouped_experts_1.shown"] *= 1.1

    report = gpu_runs(change)
    assert report.failures == (
        "model.layers.1.mlp.experts/GroupedExperts differs from the reference on its own inputs "
        "by 1.0e-01 (allowed 2.5e-02)",
    )


def test_routing_that_is_frozen_is_named(gpu_runs):
    def change(values):
        for name, array in values.items():
            if "expert_ids" in name and "layers.0" in name:
                array[:] = array[:1]

    failures = gpu_runs(change).failures
    assert any("tokens go to other experts (allowed" in failure for failure in failures)
    assert any("layers.0.mlp.experts/TopKGating differs" in failure for failure in failures)
