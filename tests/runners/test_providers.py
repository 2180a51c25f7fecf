"""A bundle for GPUs runs on one, or says what is missing; it never falls back to the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import onnx_ir as ir
import onnxruntime
import pytest

from moe_export.errors import EnvironmentLacksError
from moe_export.runners import providers
from moe_export.runners.onnxruntime import OnnxRuntimeRunner

CUDA = "CUDAExecutionProvider"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """``machine(capability, *providers)``: a machine with the GPU library and these."""

    def here(capability, *available):
        monkeypatch.setattr(providers, "gpu_library_path", lambda: tmp_path)
        monkeypatch.setattr(providers.gpu, "compute_capability", lambda: capability)
        return SimpleNamespace(
            __version__="1.31.1", get_available_providers=lambda: [*available, "CPU"]
        )

    return here


@pytest.mark.parametrize(
    ("capability", "available", "message"),
    [
        (None, (CUDA,), "no GPU is found here .* build with --target cpu"),
        ("7.5", (CUDA,), r"capability 8\.0 or later; the one here has 7\.5"),
        ("8.9", (), r"onnxruntime 1\.31\.1 here is without: pip .*moe-export\[gpu\]"),
    ],
)
def test_what_is_missing_is_named(machine, capability, available, message):
    module = machine(capability, *available)
    with pytest.raises(EnvironmentLacksError, match=message):
        providers.check_gpu(module)


def test_a_machine_that_has_all_is_taken(machine):
    providers.check_gpu(machine("8.0", CUDA))


def test_libraries_of_cuda_are_looked_for_where_onnx_runtime_can(machine):
    module, called = machine("9.0", CUDA), []
    module.preload_dlls = lambda: called.append(True)
    providers.check_gpu(module)
    assert called == [True]


def test_a_session_that_fell_back_to_the_cpu_is_refused(machine, monkeypatch, tmp_path):
    machine("8.0")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    node = ir.node("Neg", [x])
    node.outputs[0].name, node.outputs[0].type = "y", x.type
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20}, name="g")
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(EnvironmentLacksError, match="could not start its CUDA provider"):
        OnnxRuntimeRunner(tmp_path / "m.onnx", None, device="cuda")
