"""Bundles as their users meet them: built whole or not at all, and run without PyTorch."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest

from moe_export import pipeline
from moe_export.errors import EnvironmentLacksError, UsageError
from moe_export.package import bundle as bundle_module
from moe_export.package.bundle import SlowBodyWarning, UnverifiedBundleWarning, load
from moe_export.tolerances import output_tolerance, relative_error

ROOT = Path(__file__).resolve().parents[2]


def example(folder, name):
    with np.load(folder / "example" / f"{name}.npz") as archive:
        return dict(archive)


def check_example(bundle):
    """The bundle computes what eager computed when it was built."""
    found = bundle.run(example(bundle.folder, "inputs"))["output"]
    expected = example(bundle.folder, "expected")["output"]
    assert relative_error(found, expected) <= output_tolerance(2)


def lack_library():
    raise EnvironmentLacksError("the op library is not installed")


@pytest.mark.parametrize("trust", [False, True])
def test_bundle_computes_what_eager_computed(cpu_bundle, trust):
    bundle = load(cpu_bundle, trust=trust)
    assert bundle.verified
    assert bundle.parity()["passed"]
    check_example(bundle)


@pytest.mark.parametrize("num_tokens", [1, 29])
def test_batch_is_dynamic(cpu_bundle, num_tokens):
    bundle = load(cpu_bundle)
    images = np.resize(example(cpu_bundle, "inputs")["images"], (num_tokens, 64))
    output = bundle.run({"images": images})["output"]
    expected = np.resize(example(cpu_bundle, "expected")["output"], (num_tokens, 10))
    assert relative_error(output, expected) <= output_tolerance(2)


def run_python(text, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_bundle_runs_where_torch_cannot_be_imported(cpu_bundle):
    script = """
        import sys
        for name in ("torch", "onnx", "onnx_ir", "onnxscript", "transformers"):
            sys.modules[name] = None
        import numpy, moe_export
        inputs = dict(numpy.load(sys.argv[1] + "/example/inputs.npz"))
        assert moe_export.load(sys.argv[1]).run(inputs)["output"].shape == (6, 10)
    """
    run_python(script, cpu_bundle)


def test_running_a_bundle_imports_no_torch(cpu_bundle):
    script = """
        import sys, numpy, moe_export
        inputs = dict(numpy.load(sys.argv[1] + "/example/inputs.npz"))
        moe_export.load(sys.argv[1]).run(inputs)
        assert not {"torch", "onnx", "onnx_ir", "transformers"} & set(sys.modules)
    """
    run_python(script, cpu_bundle)


@pytest.mark.parametrize(
    ("status", "said"), [("failed", "failed its comparison"), ("skipped", "was never compared")]
)
def test_unverified_bundle_warns_when_it_is_loaded(bundle, edit_manifest, status, said):
    edit_manifest(lambda values: values["parity"].update(status=status))
    with pytest.warns(UnverifiedBundleWarning, match=said):
        loaded = load(bundle)
    assert not loaded.verified


def test_verified_bundle_does_not_warn(cpu_bundle):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_example(load(cpu_bundle))


def test_portable_bundle_runs_without_the_library(portable_bundle, monkeypatch):
    monkeypatch.setattr(bundle_module, "ort_library_path", lack_library)
    with pytest.warns(SlowBodyWarning, match="the op library is not installed"):
        check_example(load(portable_bundle))


def test_portable_bundle_uses_the_library_where_it_is(portable_bundle):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_example(load(portable_bundle))


def test_portable_bundle_brings_no_library(portable_bundle):
    assert not (portable_bundle / "lib").exists()


def test_cpu_bundle_needs_a_library(cpu_bundle, monkeypatch):
    monkeypatch.setattr(bundle_module, "ort_library_path", lack_library)
    with pytest.raises(EnvironmentLacksError, match="not installed"):
        load(cpu_bundle).run(example(cpu_bundle, "inputs"))


def test_trusted_bundle_runs_with_the_library_it_brings(cpu_bundle, monkeypatch):
    monkeypatch.setattr(bundle_module, "ort_library_path", lack_library)
    check_example(load(cpu_bundle, trust=True))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input images is missing; found none"),
        ({"image": np.zeros((2, 64), np.float32)}, "input images is missing; found image"),
        ({"images": np.zeros((2, 64))}, "input images must be float32; found float64"),
        ({"images": np.zeros((2, 64), np.int64)}, "input images must be float32; found int64"),
        ({"images": np.zeros((2, 63), np.float32)}, "input images must be .*64.*found .*63"),
        ({"images": np.zeros(64, np.float32)}, r"input images must be .*; found \[64\]"),
        (
            {"images": np.zeros((2, 64), np.float32), "mask": np.ones(2)},
            "no input mask; the model takes images",
        ),
    ],
)
def test_wrong_input_is_named(cpu_bundle, inputs, message):
    with pytest.raises(UsageError, match=message):
        load(cpu_bundle).run(inputs)


def test_not_contiguous_input_is_accepted(cpu_bundle):
    images = example(cpu_bundle, "inputs")["images"]
    bundle = load(cpu_bundle)
    found = bundle.run({"images": np.asfortranarray(images)})["output"]
    np.testing.assert_array_equal(found, bundle.run({"images": images})["output"])


def refuse_to_work(*_, **__):
    raise AssertionError("work was done")


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_existing_output_is_refused_before_any_work(digits, bundle, monkeypatch):
    monkeypatch.setattr(pipeline, "load_module", refuse_to_work)
    before = snapshot(bundle)
    with pytest.raises(UsageError, match=r"exists: .*--overwrite"):
        pipeline.build(*digits, output=bundle)
    assert snapshot(bundle) == before


def test_folder_of_something_else_is_not_overwritten(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "load_module", refuse_to_work)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is not a bundle"):
        pipeline.build(*digits, output=tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


class BuildStopped(Exception):  # noqa: N818 - it is raised by no product code
    pass


def interrupt(*_, **__):
    raise BuildStopped


def test_error_in_the_middle_leaves_no_folder(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "verify", interrupt)
    with pytest.raises(BuildStopped):
        pipeline.build(*digits, output=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_error_in_the_middle_leaves_an_existing_bundle(digits, bundle, monkeypatch):
    before = snapshot(bundle)
    monkeypatch.setattr(pipeline, "verify", interrupt)
    with pytest.raises(BuildStopped):
        pipeline.build(*digits, output=bundle, overwrite=True)
    assert snapshot(bundle) == before
    assert list(bundle.parent.iterdir()) == [bundle]


def test_overwriting_replaces_the_whole_bundle(digits, bundle):
    (bundle / "stale").touch()
    built = pipeline.build(*digits, output=bundle, overwrite=True, verify=False)
    assert not built.verified
    assert not (bundle / "stale").exists()
    assert not (bundle / "parity.json").exists()
    assert list(bundle.parent.iterdir()) == [bundle]


@pytest.mark.parametrize("folder", ["cpu_bundle", "portable_bundle"])
def test_nothing_temporary_is_left_beside_the_bundle(request, folder):
    bundle = request.getfixturevalue(folder)
    assert list(bundle.parent.iterdir()) == [bundle]


@pytest.mark.parametrize("folder", ["cpu_bundle", "portable_bundle"])
def test_bundle_names_no_path_of_the_machine_that_built_it(request, folder):
    bundle = request.getfixturevalue(folder)
    files = [bundle / "model.onnx", *bundle.rglob("*.json")]
    assert len(files) == 4
    for file in files:
        content = file.read_bytes()
        for place in (ROOT, Path.home(), bundle.parent, Path(sys.prefix)):
            assert str(place).encode() not in content, f"{file.name} names {place}"


def test_build_leaves_the_model_as_it_was(digits, cpu_bundle):
    model, _ = digits
    assert model.training
    assert all(module.training for module in model.modules())


def test_inputs_without_names_are_refused(bundle):
    with pytest.raises(UsageError, match="passed by name"):
        load(bundle).run(np.zeros((3, 64), np.float32))
