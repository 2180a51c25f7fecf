"""Bundles that were damaged or made by someone else: every attack ends in a ``BundleError``."""

from __future__ import annotations

import dataclasses
import json

import pytest

from moe_export.errors import BundleError
from moe_export.package.bundle import load
from moe_export.package.manifest import (
    MANIFEST_NAME,
    Manifest,
    check_files,
    hash_file,
    read_manifest,
)


def refusal(folder):
    with pytest.raises(BundleError) as caught:
        load(folder)
    return str(caught.value)


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_manifest_round_trips(bundle):
    manifest = read_manifest(bundle)
    (bundle / MANIFEST_NAME).write_text(manifest.to_text())
    assert read_manifest(bundle) == manifest


def test_every_file_is_recorded_and_hashed(bundle):
    found = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    manifest = read_manifest(bundle)
    assert set(manifest.files) == found - {MANIFEST_NAME}
    for name, record in manifest.files.items():
        assert record.sha256 == hash_file(bundle / name)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "example/../../secret",
        "..",
        ".",
        "",
        "/etc/hostname",
        "//host/share",
        "..\\secret",
        "example\\inputs.npz",
        "C:\\secret",
        "C:secret",
        "./model.onnx",
        "example//inputs.npz",
        "example/",
        ".hidden",
        "name\n",
        "name\x00",
    ],
)
def test_path_outside_the_bundle_is_refused_before_it_is_opened(bundle, edit_manifest, name):
    record = {"size_bytes": 0, "sha256": None}
    edit_manifest(lambda values: values["files"].update({name: record}))
    assert repr(name) in refusal(bundle)
    with pytest.raises(BundleError, match="not a file inside the bundle"):
        read_manifest(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_symlink_that_leaves_the_bundle_is_refused(bundle, tmp_path, name):
    outside = tmp_path / "outside"
    (bundle / name).rename(outside)
    (bundle / name).symlink_to(outside)
    assert f"{name} leads outside" in refusal(bundle)


def test_folder_symlink_that_leaves_the_bundle_is_refused(bundle, tmp_path):
    (bundle / "example").rename(tmp_path / "outside")
    (bundle / "example").symlink_to(tmp_path / "outside")
    assert "leads outside" in refusal(bundle)


def test_bundle_reached_through_a_symlink_is_fine(bundle, tmp_path):
    (tmp_path / "link").symlink_to(bundle)
    assert load(tmp_path / "link").verified


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "example/inputs.npz"])
def test_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    assert f"{name} is missing" in refusal(bundle)


def test_folder_in_place_of_a_file_is_refused(bundle):
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").mkdir()
    assert "model.onnx is missing" in refusal(bundle)


@pytest.mark.parametrize("change", [-1, 1])
def test_truncated_or_padded_data_is_refused_with_both_sizes(bundle, change):
    path = bundle / "model.onnx.data"
    size = path.stat().st_size
    path.write_bytes((path.read_bytes() + b"\x00")[: size + change])
    message = refusal(bundle)
    assert message == f"model.onnx.data has {size + change} bytes; the manifest says {size}"


@pytest.mark.parametrize("name", ["model.onnx", "lib/libmoe_export_ort.so", "parity.json"])
def test_edited_file_is_refused(bundle, name):
    flip_byte(bundle / name)
    assert refusal(bundle) == f"{name} was changed after the bundle was written"


def test_flipped_byte_of_the_data_is_found_by_integrity_alone(bundle):
    flip_byte(bundle / "model.onnx.data")
    manifest = load(bundle).manifest
    with pytest.raises(BundleError, match=r"^model\.onnx\.data was changed"):
        check_files(bundle, manifest, integrity=True)


def test_untouched_bundle_passes_integrity(bundle):
    check_files(bundle, read_manifest(bundle), integrity=True)


def test_folder_without_manifest_is_no_bundle(tmp_path):
    assert "is not a bundle: it has no manifest.json" in refusal(tmp_path)


def test_folder_that_is_not_there_is_no_bundle(tmp_path):
    assert "is not a bundle" in refusal(tmp_path / "absent")


def test_huge_manifest_is_refused_unread(bundle):
    with (bundle / MANIFEST_NAME).open("r+b") as file:
        file.truncate(1 << 30)
    assert "is larger than" in refusal(bundle)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"not JSON",
        b"\xff\xfe\x00",
        b"[" * 200_000 + b"]" * 200_000,
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    ],
    ids=["empty", "open", "text", "not_utf8", "deep_lists", "deep_objects"],
)
def test_manifest_that_is_not_json_is_refused(bundle, content):
    (bundle / MANIFEST_NAME).write_bytes(content)
    assert "manifest.json is not JSON" in refusal(bundle)


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"', "{}"])
def test_json_of_another_kind_is_refused(bundle, content):
    (bundle / MANIFEST_NAME).write_text(content)
    assert "manifest.json is malformed" in refusal(bundle)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_unknown_format_version_is_refused(bundle, edit_manifest, version):
    edit_manifest(lambda values: values.update(format_version=version))
    assert refusal(bundle) == f"the bundle has format {version}; this moe-export reads format 1"


def test_unknown_entry_is_named(bundle, edit_manifest):
    edit_manifest(lambda values: values.update(run_before_load="setup.py"))
    assert refusal(bundle) == "the manifest has unknown entries: run_before_load"


@pytest.mark.parametrize(
    "name",
    [
        field.name
        for field in dataclasses.fields(Manifest)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ],
)
def test_missing_entry_is_named(bundle, edit_manifest, name):
    edit_manifest(lambda values: values.pop(name))
    message = refusal(bundle)
    assert "malformed" in message
    assert name in message


@pytest.mark.parametrize("target", ["gpu", "", None, 3])
def test_unknown_target_is_refused(bundle, edit_manifest, target):
    edit_manifest(lambda values: values.update(target=target))
    assert f"target {target!r} is none of cpu, portable" in refusal(bundle)


@pytest.mark.parametrize("status", ["ok", "", None, True])
def test_unknown_parity_status_is_refused(bundle, edit_manifest, status):
    edit_manifest(lambda values: values["parity"].update(status=status))
    assert refusal(bundle) == f"parity status {status!r} is unknown"


@pytest.mark.parametrize(
    "record", [None, 3, [], {}, {"size_bytes": 1}, {"size_bytes": "many", "sha256": None}]
)
def test_malformed_file_record_is_refused(bundle, edit_manifest, record):
    edit_manifest(lambda values: values["files"].update({"model.onnx": record}))
    assert "manifest.json is malformed" in refusal(bundle)


@pytest.mark.parametrize("entry", ["files", "parity"])
@pytest.mark.parametrize("value", [None, [], 3])
def test_entry_of_wrong_type_is_refused(bundle, edit_manifest, entry, value):
    edit_manifest(lambda values: values.update({entry: value}))
    assert "manifest.json is malformed" in refusal(bundle)


def test_manifest_without_the_model_is_refused(bundle, edit_manifest):
    edit_manifest(lambda values: values["files"].pop("model.onnx"))
    assert "lists no model.onnx" in refusal(bundle)


def test_manifest_has_no_nan(bundle):
    def refuse(constant):
        raise AssertionError(constant)

    json.loads((bundle / MANIFEST_NAME).read_text(), parse_constant=refuse)
    manifest = dataclasses.replace(read_manifest(bundle), parity={"max_error": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        manifest.to_text()
