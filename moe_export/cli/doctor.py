"""``moe-export doctor``."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from moe_export.cli.console import make_table, stdout
from moe_export.cli.doctor_gpu import test_gpu
from moe_export.cli.options import Output, common_options
from moe_export.errors import EnvironmentLacksError
from moe_export.runners.gpu import compute_capability
from moe_export.runners.library import gpu_build, instruction_set, ort_library_path

# What each part of the product needs.
_PACKAGES = {
    "onnxruntime": "run bundles",
    "torch": "build",
    "onnx": "build",
    "onnx-ir": "build",
    "onnxscript": "build",
    "transformers": "build from Hugging Face models",
}
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd")


@click.command(epilog="Example: moe-export doctor --json")
@click.option("--gpu", is_flag=True, help="Run every GPU kernel, and compare with the reference.")
@common_options
def doctor(output: Output, gpu: bool) -> None:
    """Say what this machine can do, and what is missing for the rest.

    Ends with 4 if bundles cannot be run here, and with 1 if a GPU kernel computes something else.
    """
    if gpu:
        test_gpu(output)
        return
    found = {
        "platform": _platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "library": _library(),
        "gpu": _gpu(),
    }
    output.emit(found, lambda: _draw(found))
    if not found["library"]["works"]:
        raise EnvironmentLacksError(f"bundles cannot be run: {found['library']['detail']}")


def _platform() -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text().split() if cpu.is_file() else []
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "cores": os.cpu_count(),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _library() -> dict[str, Any]:
    """Whether the op library is there and ONNX Runtime takes it."""
    try:
        path = ort_library_path()
    except EnvironmentLacksError as error:
        return {"works": False, "path": None, "detail": str(error)}
    try:
        import onnxruntime
    except ImportError:
        return {"works": False, "path": str(path), "detail": "onnxruntime is not installed"}
    try:
        onnxruntime.SessionOptions().register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime raises its own kinds, none of them public
        return {"works": False, "path": str(path), "detail": str(error)}
    try:
        kernels = instruction_set(path)
    except EnvironmentLacksError as error:
        return {"works": False, "path": str(path), "detail": str(error)}
    detail = f"registered with ONNX Runtime, kernels for {kernels}"
    return {"works": True, "path": str(path), "detail": detail}


def _gpu() -> dict[str, Any]:
    build = gpu_build()
    return {
        "compute_capability": compute_capability(),
        "nvcc": shutil.which("nvcc"),
        "kernels": {"built_for": build.targets, "missing": build.kernels_missing},
        "tensorrt_plugins": {"missing": build.plugins_missing_because},
    }


def _draw(found: dict[str, Any]) -> None:
    console = stdout()
    system = found["platform"]
    sets = ", ".join(system["instruction_sets"]) or "none known"
    console.print(f"{system['system']}, {system['libc']}, Python {system['python']}")
    console.print(f"{system['cores']} cores, instruction sets: {sets}")
    rows = [
        (name, version or "missing", f"to {_PACKAGES[name]}")
        for name, version in found["packages"].items()
    ]
    console.print(make_table("", ("package", "version", "needed"), rows))
    library = found["library"]
    state = "works" if library["works"] else "does not work"
    console.print(f"op library {state}: {library['detail']}", soft_wrap=True)
    if library["path"]:
        console.print(f"  {library['path']}", soft_wrap=True)
    _draw_gpu(found["gpu"])


def _draw_gpu(gpu: dict[str, Any]) -> None:
    console = stdout()
    capability = gpu["compute_capability"]
    device = f"compute capability {capability}" if capability else "none found"
    console.print(f"GPU: {device}; nvcc: {gpu['nvcc'] or 'not found'}")
    kernels, plugins = gpu["kernels"], gpu["tensorrt_plugins"]
    if kernels["missing"]:
        state = f"not built: {kernels['missing']}"
    else:
        names = ", ".join(f"SM{target}" for target in kernels["built_for"])
        state = f"built for {names}, and as PTX for later ones"
    console.print(f"GPU kernels: {state}", soft_wrap=True)
    state = f"not built: {plugins['missing']}" if plugins["missing"] else "built"
    console.print(f"TensorRT plugins: {state}", soft_wrap=True)
