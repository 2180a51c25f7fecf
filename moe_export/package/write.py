"""Write a bundle beside its final place, then move it there whole."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from moe_export.errors import MoeExportError
from moe_export.generation.spec import GenerationSpec
from moe_export.package.bundle import PARITY_NAME
from moe_export.package.manifest import MANIFEST_NAME, FileRecord, Manifest
from moe_export.runners.arrays import Array, write_arrays
from moe_export.runners.fingerprint import EngineFingerprint
from moe_export.runners.library import hash_file
from moe_export.runners.onnxruntime import Signature
from moe_export.verify.example_record import EXAMPLE_FOLDER

_PACKAGES = ("moe-export", "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")
# The oldest ONNX Runtime that a bundle was run with; the op library itself asks for API 17.
MINIMUM_VERSIONS = {"onnxruntime": "1.20", "onnx_ir_version": "10", "opset": "20"}
# What a bundle of ``cuda`` needs besides; the kernels' machine code begins there.
MINIMUM_GPU = {"onnxruntime-gpu": "1.20", "compute_capability": "8.0"}


def check_room(output: Path, needed: int) -> None:
    """Make sure that ``output``'s disk has room before work begins.

    Args:
        output: The bundle's folder, which need not exist.
        needed: Bytes that will be written at the least.

    Raises:
        MoeExportError: there is less; says how much.
    """
    folder = output.absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MoeExportError(
            f"{folder} has {free / 1e9:.2f} GB free; the bundle's weights alone take "
            f"{needed / 1e9:.2f} GB: make room or choose another output"
        )


@contextmanager
def staged(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside ``output`` that takes its place when the block ends without an error.

    Raises:
        MoeExportError: ``output``'s parent cannot be written.
    """
    parent = output.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=parent))
        folder.chmod(0o755)
    except OSError as error:
        raise MoeExportError(f"{parent} cannot be written: {error}") from error
    try:
        yield folder
        _exchange(folder, output, overwrite=overwrite)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _exchange(folder: Path, output: Path, *, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        folder.rename(output)
        return
    if not overwrite:
        raise MoeExportError(
            f"{output} appeared while the bundle was built: nothing is overwritten"
        )
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old.", dir=output.absolute().parent))
    output.rename(old / output.name)
    try:
        folder.rename(output)
    except OSError:
        (old / output.name).rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_example(folder: Path, inputs: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Write the example's inputs and eager's outputs."""
    (folder / EXAMPLE_FOLDER).mkdir()
    write_arrays(folder / EXAMPLE_FOLDER / "inputs.npz", inputs)
    write_arrays(folder / EXAMPLE_FOLDER / "expected.npz", expected)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write formatted JSON without NaN."""
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_parity(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the full parity report."""
    write_json(folder / PARITY_NAME, report)


def record_replay(folder: Path, manifest: Manifest, found: Mapping[str, Any]) -> Manifest:
    """Add to a bundle what comparing its example on a GPU showed.

    Args:
        folder: The bundle.
        manifest: Its manifest, which is written again.
        found: A ``ReplayReport`` in plain values.
    """
    path = folder / PARITY_NAME
    report = {**json.loads(path.read_text(encoding="utf-8")), "device": found}
    write_parity(folder, report)
    record = FileRecord(path.stat().st_size, hash_file(path))
    status = "passed" if found["passed"] else "failed"
    written = replace(
        manifest,
        files={**manifest.files, PARITY_NAME: record},
        parity={**manifest.parity, "status": status},
    )
    return rewrite_manifest(folder, written)


def rewrite_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of a bundle whose files are recorded in it."""
    (folder / MANIFEST_NAME).write_text(manifest.to_text(), encoding="utf-8")
    return manifest


def copy_libraries(folder: Path, libraries: Sequence[Path]) -> None:
    """Put the op libraries where C++ programs and servers find them."""
    (folder / "lib").mkdir()
    for library in libraries:
        shutil.copy(library, folder / "lib" / library.name)


def write_manifest(
    folder: Path,
    *,
    target: str,
    source: Mapping[str, Any],
    inputs: tuple[Signature, ...],
    outputs: tuple[Signature, ...],
    layers: list[dict[str, Any]],
    parity: Mapping[str, Any],
    batch_coupled: bool | None,
    telemetry: list[dict[str, str]],
    generation: GenerationSpec | None,
    remarks: list[str],
    engine: EngineFingerprint | None = None,
) -> Manifest:
    """Record every file of ``folder`` and write the manifest last."""
    files = {
        path.relative_to(folder).as_posix(): FileRecord(path.stat().st_size, hash_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = Manifest(
        target=target,
        source=source,
        versions={"python": platform.python_version(), **_versions()},
        minimum_versions=_minimum_versions(target, engine),
        files=files,
        inputs=[asdict(s) for s in inputs],
        outputs=[asdict(s) for s in outputs],
        layers=layers,
        parity=parity,
        batch_coupled=batch_coupled,
        telemetry=telemetry,
        generation=generation,
        remarks=remarks,
        engine=engine,
    )
    return rewrite_manifest(folder, manifest)


def _minimum_versions(target: str, engine: EngineFingerprint | None) -> dict[str, str]:
    if engine is not None:
        return {engine.flavor: engine.version}
    return MINIMUM_VERSIONS | (MINIMUM_GPU if target == "cuda" else {})


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
