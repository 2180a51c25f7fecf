"""Models of the hub, from a small hub on this machine: revisions, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from moe_export.errors import EnvironmentLacksError, UnsupportedModelError, UsageError
from moe_export.plan import BuildPlan
from moe_export.sources.hub import is_hub_id
from moe_export.sources.source import load_source
from tests.sources.test_source import save_tiny_mixtral

PLAN = BuildPlan(output=Path("unused"))


class Hub(BaseHTTPRequestHandler):
    """Answers the two questions of ``snapshot_download``: what is there, and give me this file."""

    repositories: ClassVar[dict[str, dict[str, Path]]] = {}  # folders by name and revision
    gated: ClassVar[set[str]] = set()
    downloaded: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def log_message(self, *_):
        pass

    def answer(self, body):
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name, revision, file = "/".join(parts[2:4]), parts[-1], None
            if "tree" in parts:
                revision = parts[parts.index("tree") + 1]
        else:
            name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if name in self.gated:
            return self.fail(403, "GatedRepo")
        if name not in self.repositories:
            return self.fail(401, "RepoNotFound")
        revisions = self.repositories[name]
        commits = {commit_of(name, r): folder for r, folder in revisions.items()}
        commit = commit_of(name, revision) if revision in revisions else revision
        if commit not in commits:
            return self.fail(404, "RevisionNotFound")
        folder = commits[commit]
        if file is not None:
            return self.send_file(folder / file, commit, body)
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        if "tree" in parts:
            entries = [entry_of(folder, n) for n in names]
            return self.send(json.dumps(entries).encode(), {})
        siblings = [{"rfilename": n} for n in names]
        content = {"id": name, "sha": commit, "siblings": siblings, "private": False}
        return self.send(json.dumps(content).encode(), {})

    def send_file(self, path, commit, body):
        if not path.is_file():
            return self.fail(404, "EntryNotFound")
        content = path.read_bytes()
        if body:
            self.downloaded.append(path.name)
        return self.send(content, {"ETag": f'"{digest(content)}"', "X-Repo-Commit": commit}, body)

    def send(self, content, headers, body=True):
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def fail(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def commit_of(name, revision):
    return hashlib.sha1(f"{name} {revision}".encode()).hexdigest()


def digest(content):
    return hashlib.sha1(content).hexdigest()


def entry_of(folder, name):
    content = (folder / name).read_bytes()
    return {"type": "file", "path": name, "size": len(content), "oid": digest(content)}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub without models, which is all that the package sees of the network."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    point_to(monkeypatch, endpoint, tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(Hub, "repositories", {})
    monkeypatch.setattr(Hub, "gated", set())
    monkeypatch.setattr(Hub, "downloaded", [])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Hub
    server.shutdown()
    server.server_close()
    thread.join()


def point_to(monkeypatch, endpoint, cache):
    """Let huggingface_hub use another endpoint and another cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        endpoint + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def make_revision(folder, fill):
    """A Mixtral whose last norm is ``fill``, with files that are not to be downloaded."""
    folder.mkdir(parents=True)
    save_tiny_mixtral(folder)
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"].fill_(fill)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "original").mkdir()
    (folder / "original" / "model.safetensors").write_bytes(b"the same in another form")
    (folder / "consolidated.safetensors").write_bytes(b"the same in another form")
    (folder / "modeling_own.py").write_text("raise RuntimeError")
    return folder


def test_revision_is_the_one_that_is_loaded(tmp_path, hub):
    main = make_revision(tmp_path / "files" / "main", 1)
    older = make_revision(tmp_path / "files" / "v0.1", 2)
    hub.repositories["org/Mini-MoE-v0.1"] = {"main": main, "v0.1": older}
    commit = commit_of("org/Mini-MoE-v0.1", "v0.1")
    for source, fill in (("", 1.0), ("@main", 1.0), ("@v0.1", 2.0), (f"@{commit}", 2.0)):
        loaded = load_source(f"org/Mini-MoE-v0.1{source}", PLAN)
        assert set(loaded.model.model.norm.weight.tolist()) == {fill}
        assert loaded.source == f"org/Mini-MoE-v0.1{source}"
    expected = {"config.json", "generation_config.json", "model.safetensors"}
    assert set(hub.downloaded) == expected


def test_shards_of_the_index_are_downloaded(tmp_path, hub):
    folder = make_revision(tmp_path / "files", 1)
    (folder / "model.safetensors").rename(folder / "part-1.safetensors")
    from safetensors import safe_open

    with safe_open(folder / "part-1.safetensors", framework="pt") as file:
        weight_map = dict.fromkeys(file.keys(), "part-1.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.repositories["org/mini"] = {"main": folder}
    assert "logits" in (loaded := load_source("org/mini", PLAN)).run(loaded.inputs)
    assert "part-1.safetensors" in hub.downloaded
    assert "consolidated.safetensors" not in hub.downloaded


def test_weights_of_pickles_are_downloaded_where_there_are_no_others(tmp_path, hub):
    folder = make_revision(tmp_path / "files", 1)
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "consolidated.safetensors").unlink()
    hub.repositories["org/mini"] = {"main": folder}
    assert "logits" in (loaded := load_source("org/mini", PLAN)).run(loaded.inputs)


def test_quantized_model_is_refused_before_its_weights_are_downloaded(tmp_path, hub):
    folder = make_revision(tmp_path / "files", 1)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    hub.repositories["org/mini-GPTQ"] = {"main": folder}
    with pytest.raises(UnsupportedModelError, match="org/mini-GPTQ is quantized by gptq"):
        load_source("org/mini-GPTQ", PLAN)
    assert "config.json" in hub.downloaded
    assert "model.safetensors" not in hub.downloaded


def test_model_without_config_or_weights_is_refused(tmp_path, hub):
    folder = make_revision(tmp_path / "files", 1)
    (folder / "model.safetensors").unlink()
    hub.repositories["org/mini"] = {"main": folder}
    with pytest.raises(UsageError, match=r"org/mini has neither model\.safetensors nor"):
        load_source("org/mini", PLAN)
    (folder / "config.json").unlink()
    hub.repositories["org/other"] = {"main": folder}
    with pytest.raises(UsageError, match=r"org/other on the hub has no config\.json"):
        load_source("org/other", PLAN)


def test_revision_that_is_not_there_is_named(tmp_path, hub):
    hub.repositories["org/mini"] = {"main": make_revision(tmp_path / "files", 1)}
    with pytest.raises(UsageError, match=r"the hub's org/mini has no revision v9"):
        load_source("org/mini@v9", PLAN)


def test_model_that_is_not_there_may_be_a_folder_that_is_not_there(hub):
    with pytest.raises(UsageError, match=r"no such folder here, and the hub has no model org/mini"):
        load_source("org/mini", PLAN)


def test_gated_model_says_how_to_get_in(hub):
    hub.gated.add("org/mini")
    with pytest.raises(EnvironmentLacksError, match=r"org/mini is gated: .*HF_TOKEN"):
        load_source("org/mini", PLAN)


def test_hub_that_cannot_be_reached_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    point_to(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    with pytest.raises(
        EnvironmentLacksError, match=r"no such folder here.*Pass a folder"
    ) as caught:
        load_source("org/mini@main", PLAN)
    assert "Connection refused" in str(caught.value)


def test_model_in_the_cache_needs_no_network(tmp_path, hub, monkeypatch):
    hub.repositories["org/mini"] = {"main": make_revision(tmp_path / "files", 1)}
    load_source("org/mini", PLAN)
    point_to(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    assert "logits" in (loaded := load_source("org/mini", PLAN)).run(loaded.inputs)


@pytest.mark.parametrize(
    "name", ["org/mini", "Qwen/Qwen1.5-MoE-A2.7B", "o/m@v0.1", "o/m@refs/pr/3"]
)
def test_ids_of_the_hub(name):
    assert is_hub_id(name)


@pytest.mark.parametrize(
    "name", ["mini", "a/b/c", "/a/b", "../b", "./b", "a/b@", "a/b@../c", "a/b c"]
)
def test_paths_and_other_names_are_no_ids(name):
    assert not is_hub_id(name)
