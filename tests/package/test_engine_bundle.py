"""A bundle with an engine: what its fingerprint refuses, and what it says when it is opened."""

from __future__ import annotations

import dataclasses
import json
import types
import warnings

import pytest

import moe_export
from moe_export.errors import BundleError, EnvironmentLacksError, UsageError
from moe_export.package.bundle import UnverifiedBundleWarning
from moe_export.package.manifest import read_manifest
from moe_export.package.write import write_manifest
from moe_export.runners import tensorrt
from moe_export.runners.fingerprint import EngineFingerprint
from moe_export.runners.onnxruntime import Signature

FINGERPRINT = EngineFingerprint(
    plan="engine/model.plan",
    flavor="tensorrt-rtx",
    version="1.7.1.116",
    compute_capabilities=("8.0", "8.9"),
    plugins={"TopKGating": "1", "GroupedExperts": "1"},
    plugin_library_sha256="0" * 64,
    profiles=({"x": ((1, 64), (8, 64), (64, 64))},),
    dtype="bf16",
)
REASON = "its engine needs a GPU to run, and the machine that built it has none"


@pytest.fixture
def folder(tmp_path):
    return write_bundle(tmp_path / "bundle", FINGERPRINT)


def write_bundle(folder, fingerprint):
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "model.plan").write_bytes(b"plan")
    (folder / "model.onnx").write_bytes(b"graph")
    write_manifest(
        folder,
        target=fingerprint.flavor,
        source={"name": "test"},
        inputs=(Signature("x", "tensor(float)", ("batch", 64)),),
        outputs=(),
        layers=[],
        parity={"status": "skipped", "reason": REASON},
        batch_coupled=None,
        telemetry=[],
        generation=None,
        remarks=[],
        engine=fingerprint,
    )
    return folder


@pytest.fixture
def machine(monkeypatch):
    """``machine(version, capability)``: what this machine has; None for nothing."""

    def here(version, capability):
        def installed(flavor):
            if version is None:
                raise EnvironmentLacksError(f"{flavor} is not here")
            return version

        monkeypatch.setattr(tensorrt, "installed_version", installed)
        monkeypatch.setattr(tensorrt.gpu, "compute_capability", lambda: capability)

    return here


def open_bundle(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnverifiedBundleWarning)
        return moe_export.load(folder)


def test_the_manifest_keeps_the_fingerprint(folder):
    manifest = read_manifest(folder)
    assert manifest.engine == FINGERPRINT
    assert manifest.minimum_versions == {"tensorrt-rtx": "1.7.1.116"}


def test_every_load_says_that_nothing_was_compared_and_why(folder, machine):
    machine("1.7.1.116", None)
    with pytest.warns(UnverifiedBundleWarning, match=f"never compared with eager .*{REASON}"):
        assert not moe_export.load(folder).verified


@pytest.mark.parametrize("version", ["1.6.0.1", "1.8.0.1"])
def test_another_version_is_refused_with_both(folder, machine, version):
    machine(version, "8.9")
    with pytest.raises(BundleError, match=rf"tensorrt-rtx 1\.7\.1\.116 .*here is {version}"):
        open_bundle(folder)


def test_another_gpu_is_refused_with_both(folder, machine):
    machine("1.7.1.116", "12.0")
    with pytest.raises(BundleError, match=r"capability 8\.0, 8\.9; the one here has 12\.0"):
        open_bundle(folder)


def test_compatible_engines_run_on_what_is_later(tmp_path, machine):
    wider = dataclasses.replace(
        FINGERPRINT, flavor="tensorrt", version_compatible=True, hardware_compatible=True
    )
    folder = write_bundle(tmp_path / "wide", wider)
    machine("1.10.0.2", "12.0")
    assert open_bundle(folder).manifest.engine == wider
    machine("1.6.0.1", "8.0")
    with pytest.raises(BundleError, match=r"runs with 1\.7\.1\.116 or later; here is 1\.6\.0\.1"):
        open_bundle(folder)
    machine("1.7.1.116", "7.5")
    with pytest.raises(BundleError, match=r"the one here has 7\.5"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("version", "capability", "message"),
    [
        (None, None, "tensorrt-rtx is not here"),
        ("1.7.1.116", None, r"for GPUs of compute capability 8\.0, 8\.9; no GPU is found here"),
    ],
)
def test_a_bundle_is_opened_anywhere_and_says_what_running_lacks(
    folder, machine, version, capability, message
):
    machine(version, capability)
    bundle = open_bundle(folder)
    with pytest.raises(EnvironmentLacksError, match=message):
        bundle.run({})


def test_experts_load_is_counted_elsewhere(folder, machine):
    machine("1.7.1.116", "8.9")
    with pytest.raises(UsageError, match="count with a bundle of --target cpu"):
        open_bundle(folder).expert_load({})


def test_a_bundle_runs_its_engine_where_there_is_a_gpu(folder, machine, monkeypatch):
    machine("1.7.1.116", "8.9")
    opened = []

    def open_engine(plan, _module, _plugins, _device, shapes):
        opened.append((plan, shapes))
        return types.SimpleNamespace(run=lambda inputs: {"y": inputs["x"]})

    monkeypatch.setattr(tensorrt, "EngineRunner", open_engine)
    monkeypatch.setattr(tensorrt, "DriverDevice", object)
    monkeypatch.setattr(tensorrt, "plugin_library_path", lambda: folder)
    bundle = open_bundle(folder)
    assert bundle.run({"x": 1}) == bundle.run({"x": 1}) == {"y": 1}
    assert opened == [(folder / FINGERPRINT.plan, {"x": ("batch", 64)})]
    with pytest.raises(UsageError, match="holds an engine for tensorrt-rtx"):
        bundle.open_runner()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(engine=None), "has an engine entry or lacks one"),
        (lambda m: m["engine"].update(extra=1), "unknown entries: extra"),
        (lambda m: m["engine"].pop("version"), "malformed.*version"),
        (lambda m: m["engine"].update(version=7), "version must be text"),
        (lambda m: m["engine"].update(compute_capabilities=["ninety"]), "malformed"),
        (lambda m: m["engine"].update(profiles=[{"x": [[1]]}]), "malformed"),
        (lambda m: m["engine"].update(plan="engine/other.plan"), "none of the bundle's files"),
        (lambda m: m.update(target="cpu"), "has an engine entry or lacks one"),
    ],
)
def test_a_fingerprint_that_was_edited_is_refused(folder, change, message):
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match=message):
        read_manifest(folder)
