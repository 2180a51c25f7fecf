"""What is missing for an engine is said before any work is done."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

import moe_export
from moe_export.cli.main import main
from moe_export.engine import environment
from moe_export.engine.environment import find_environment
from moe_export.errors import EnvironmentLacksError, UsageError
from moe_export.plan import BuildPlan
from moe_export.runners.library import PLUGIN_LIBRARY_VARIABLE


@pytest.fixture
def library(tmp_path, monkeypatch):
    path = tmp_path / "plugins.so"
    path.write_bytes(b"")
    monkeypatch.setenv(PLUGIN_LIBRARY_VARIABLE, str(path))
    return path


@pytest.fixture
def installed(monkeypatch):
    """Names of the modules that are there."""
    names = {"tensorrt", "tensorrt_rtx", "polygraphy"}
    monkeypatch.setattr(
        environment.importlib.util, "find_spec", lambda n: n if n in names else None
    )
    return names


def plan(target, **options):
    return BuildPlan(output="bundle", target=target, **options)


@pytest.mark.parametrize(
    ("target", "module", "install"),
    [
        ("tensorrt-rtx", "tensorrt_rtx", r"moe-export\[tensorrt-rtx\]"),
        ("tensorrt", "tensorrt", "NVIDIA's package index"),
        ("tensorrt-rtx", "polygraphy", r"moe-export\[tensorrt-rtx\]"),
    ],
)
def test_a_missing_package_is_named_with_how_to_install_it(
    library, installed, target, module, install
):
    installed.remove(module)
    with pytest.raises(EnvironmentLacksError, match=f"needs {module}, .*{install}"):
        find_environment(plan(target))


def test_without_a_gpu_it_has_to_be_said_what_to_build_for(library, installed, monkeypatch):
    monkeypatch.setattr(environment.gpu, "compute_capability", lambda: None)
    found = find_environment(plan("tensorrt-rtx", compute_capabilities=("8.0", "8.9")))
    assert (found.library, found.compute_capabilities) == (library, ("8.0", "8.9"))
    assert not found.use_gpu
    with pytest.raises(EnvironmentLacksError, match=r"as in --compute-capability 8\.9"):
        find_environment(plan("tensorrt-rtx"))
    with pytest.raises(EnvironmentLacksError, match=r"--target tensorrt-rtx builds without one"):
        find_environment(plan("tensorrt"))


def test_gpus_without_kernels_are_refused(library, installed):
    with pytest.raises(UsageError, match=r"7\.5: the plugins have kernels from 8\.0 on"):
        find_environment(plan("tensorrt-rtx", compute_capabilities=("8.9", "7.5")))


def test_the_gpu_here_is_what_is_built_for_unless_another_is_named(library, installed, monkeypatch):
    monkeypatch.setattr(environment.gpu, "compute_capability", lambda: "9.0")
    found = find_environment(plan("tensorrt"))
    assert (found.compute_capabilities, found.use_gpu) == (("9.0",), True)


def test_a_plugin_library_that_is_not_there_is_named(installed, monkeypatch, tmp_path):
    monkeypatch.setenv(PLUGIN_LIBRARY_VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(
        EnvironmentLacksError, match=r"MOE_EXPORT_TENSORRT_LIBRARY names .*none\.so"
    ):
        find_environment(plan("tensorrt-rtx"))


def test_building_ends_with_4_before_the_model_is_loaded(library, installed, tmp_path):
    installed.remove("tensorrt")
    arguments = ["build", "no_such_module:model", "-o", str(tmp_path / "b"), "--target", "tensorrt"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 4
    assert "--target tensorrt needs tensorrt, which is not installed" in result.output
    with pytest.raises(EnvironmentLacksError):
        moe_export.build(torch.nn.Linear(2, 2), output=tmp_path / "b", target="tensorrt")


@pytest.mark.parametrize("named", [("8.9",), ("10.0", "12.0")])
def test_a_gpu_without_tensorrts_own_moe_layer_is_refused(library, installed, monkeypatch, named):
    asked = plan("tensorrt-rtx", moe="native", compute_capabilities=named)
    with pytest.raises(UsageError, match=rf"on GPUs of .*; the engine is for {named[-1]}\. Take"):
        find_environment(asked)
    monkeypatch.setattr(environment.gpu, "compute_capability", lambda: named[-1])
    with pytest.raises(UsageError, match="--moe native"):
        find_environment(plan("tensorrt", moe="native"))
    assert find_environment(plan("tensorrt", moe="auto")).compute_capabilities == (named[-1],)
    monkeypatch.setattr(environment.gpu, "compute_capability", lambda: "10.3")
    assert find_environment(plan("tensorrt", moe="native")).use_gpu
