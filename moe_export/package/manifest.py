"""The manifest of a bundle: what it holds, for whom, and whether it was proved."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_export.errors import BundleError
from moe_export.generation.spec import GenerationSpec
from moe_export.plan import ENGINE_TARGETS, TARGETS
from moe_export.runners.fingerprint import EngineFingerprint
from moe_export.runners.library import hash_file

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
PARITY_STATUSES = ("passed", "graph", "failed", "skipped")
_MAX_MANIFEST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class FileRecord:
    """A file of the bundle: its size, and its hash where hashing it is instant."""

    size_bytes: int
    sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes:
        target: The one target that the bundle serves.
        source: What was exported, with its description.
        versions: Of the packages that made it.
        minimum_versions: Of what runs it.
        files: By path inside the bundle.
        inputs: Signature: name, dtype, shape with symbolic sizes as names.
        outputs: The same of the outputs.
        layers: The MoE layers in order.
        parity: Summary; ``status`` is passed, failed or skipped, or graph where the graph agrees
            with eager on the CPU and what the GPU computes was not compared.
        batch_coupled: Whether one request can change another's result.
        telemetry: Outputs that tell how each MoE layer spreads its tokens, and what they count;
            empty where the build was not asked for them.
        generation: How the bundle generates; None for a graph without a cache.
        remarks: What the build had to say.
        engine: What the engine was built with; None where the target has none.
    """

    target: str
    source: Mapping[str, Any]
    versions: Mapping[str, str]
    minimum_versions: Mapping[str, str]
    files: Mapping[str, FileRecord]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    parity: Mapping[str, Any]
    batch_coupled: bool | None
    telemetry: list[dict[str, str]] = field(default_factory=list)
    generation: GenerationSpec | None = None
    remarks: list[str] = field(default_factory=list)
    engine: EngineFingerprint | None = None
    format_version: int = FORMAT_VERSION

    def to_text(self) -> str:
        """Formatted JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json``.

    Raises:
        BundleError: it is missing, too large, malformed, of a later format, or names a file outside
            the bundle.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST_NAME}")
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {_MAX_MANIFEST_BYTES} bytes")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}") from error
    try:
        return _from_json(values)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise BundleError(f"{path} is malformed: {error!r}") from error


def _from_json(values: Any) -> Manifest:  # noqa: ANN401 - any JSON
    version = values["format_version"]
    if version != FORMAT_VERSION:
        raise BundleError(
            f"the bundle has format {version}; this moe-export reads format {FORMAT_VERSION}"
        )
    known = {f.name for f in dataclasses.fields(Manifest)}
    if unknown := sorted(set(values) - known):
        raise BundleError(f"the manifest has unknown entries: {', '.join(unknown)}")
    files = {}
    for name, record in values["files"].items():
        _check_name(name)
        files[name] = FileRecord(int(record["size_bytes"]), record["sha256"])
    generation = values.get("generation")
    if generation is not None:
        inputs, outputs = ([str(s["name"]) for s in values[k]] for k in ("inputs", "outputs"))
        generation = GenerationSpec.from_json(generation, inputs, outputs, files)
    engine = values.get("engine")
    if engine is not None:
        engine = EngineFingerprint.from_json(engine)
    read = {"files": files, "generation": generation, "engine": engine}
    manifest = Manifest(**{**values, **read})
    if manifest.target not in TARGETS:
        raise BundleError(f"target {manifest.target!r} is none of {', '.join(TARGETS)}")
    if (manifest.target in ENGINE_TARGETS) != (engine is not None):
        raise BundleError(f"a bundle for {manifest.target} has an engine entry or lacks one")
    if engine is not None and engine.plan not in files:
        raise BundleError(f"the engine {engine.plan} is none of the bundle's files")
    if manifest.parity["status"] not in PARITY_STATUSES:
        raise BundleError(f"parity status {manifest.parity['status']!r} is unknown")
    return manifest


def _check_name(name: str) -> None:
    """A path inside the bundle: relative, forward, without dots."""
    parts = name.split("/")
    if not all(re.fullmatch(r"[\w][\w.-]*", part) for part in parts):
        raise BundleError(f"the manifest names {name!r}, which is not a file inside the bundle")


def check_files(folder: Path, manifest: Manifest, *, integrity: bool = False) -> None:
    """Check that the bundle's files are there, unchanged in size, and unchanged where hashed.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        integrity: Hash the large data files too.

    Raises:
        BundleError: names the file.
    """
    root = folder.resolve()
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{name} is missing from {folder}")
        if not path.resolve().is_relative_to(root):
            raise BundleError(f"{name} leads outside {folder}")
        if path.stat().st_size != record.size_bytes:
            raise BundleError(
                f"{name} has {path.stat().st_size} bytes; the manifest says {record.size_bytes}"
            )
        small = not name.endswith((".data", ".plan"))
        if record.sha256 is not None and (small or integrity) and hash_file(path) != record.sha256:
            raise BundleError(f"{name} was changed after the bundle was written")
