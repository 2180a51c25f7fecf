"""Tokenizer files are copied by name, and nothing that a link leads to elsewhere."""

from __future__ import annotations

import json

import pytest

from moe_export.errors import UsageError
from moe_export.package import text_files
from moe_export.package.text_files import copy_text_files


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_text(json.dumps({"name": name}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "modeling_code.py").write_text("print()")
    return folder


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "bundle").mkdir()
    return tmp_path / "bundle"


def test_known_files_are_copied_and_no_others(source, bundle):
    copied = copy_text_files(source, bundle)
    found = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert (
        found
        == set(copied)
        == {
            "tokenizer/tokenizer.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer/chat_template.jinja",
            "generation_config.json",
        }
    )
    assert (bundle / "tokenizer/tokenizer.json").read_bytes() == (
        source / "tokenizer.json"
    ).read_bytes()


def test_a_folder_without_them_gives_none(tmp_path, bundle):
    (tmp_path / "empty").mkdir()
    assert copy_text_files(tmp_path / "empty", bundle) == ()
    assert list(bundle.iterdir()) == []


def test_a_link_out_of_the_folder_is_refused(source, bundle, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (source / "vocab.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UsageError, match=r"vocab\.json is a link to .*outside the checkpoint"):
        copy_text_files(source, bundle)


def test_links_of_the_hubs_cache_are_followed(source, bundle, tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1f2e").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/1f2e")
    assert copy_text_files(snapshot, bundle) == ("tokenizer/tokenizer.json",)
    assert not (bundle / "tokenizer/tokenizer.json").is_symlink()


def test_a_file_that_is_too_large_is_refused(source, bundle, monkeypatch):
    monkeypatch.setattr(text_files, "_MAX_BYTES", 10)
    with pytest.raises(UsageError, match=r"tokenizer\.json has \d+ bytes"):
        copy_text_files(source, bundle)


def test_json_that_is_none_is_refused(source, bundle):
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        copy_text_files(source, bundle)
