"""Where the op libraries for ONNX Runtime and for TensorRT are."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from moe_export.errors import EnvironmentLacksError
from moe_export.plan import BuildPlan

LIBRARY_NAME = "libmoe_export_ort.so"
GPU_LIBRARY_NAME = "libmoe_export_cuda.so"
PLUGIN_LIBRARY_NAME = "libmoe_export_trt.so"
# Names another plugin library than the installed one.
PLUGIN_LIBRARY_VARIABLE = "MOE_EXPORT_TENSORRT_LIBRARY"


def ort_library_path() -> Path:
    """Path of the op library that was built when this package was installed.

    Raises:
        EnvironmentLacksError: the package is not installed, or without the library.
    """
    path = _installed(LIBRARY_NAME)
    if not path.is_file():
        raise EnvironmentLacksError(
            f"{path} is missing: install again with pip install '.[cpu]', which builds it "
            "(a C++ compiler is needed)"
        )
    return path


def gpu_library_path() -> Path:
    """Path of the GPU kernels' library.

    Raises:
        EnvironmentLacksError: it was not built; says why.
    """
    path = _installed(GPU_LIBRARY_NAME)
    if not path.is_file():
        raise EnvironmentLacksError(
            f"the GPU kernels are not built ({gpu_build().kernels_missing}): install moe-export "
            "again on a machine with nvcc (CUDA 12.8 or later), which builds them"
        )
    return path


def plugin_library_path() -> Path:
    """Path of the TensorRT plugins: the installed library, or the one that a variable names.

    Raises:
        EnvironmentLacksError: there is none.
    """
    if named := os.environ.get(PLUGIN_LIBRARY_VARIABLE):
        path = Path(named)
        if not path.is_file():
            raise EnvironmentLacksError(f"{PLUGIN_LIBRARY_VARIABLE} names {path}, which is no file")
        return path.absolute()
    path = _installed(PLUGIN_LIBRARY_NAME)
    if not path.is_file():
        raise EnvironmentLacksError(
            f"the TensorRT plugins are not built ({gpu_build().plugins_missing_because}): install "
            "moe-export again on a machine with nvcc (CUDA 12.8 or later), which builds them"
        )
    return path


def find_libraries(plan: BuildPlan) -> tuple[Path, ...]:
    """The libraries that a bundle brings; none for a portable one.

    Raises:
        EnvironmentLacksError: one was not built.
    """
    if plan.builds_engine:
        return (plugin_library_path(),)
    if plan.target == "cuda":
        return ort_library_path(), gpu_library_path()
    return (ort_library_path(),) if plan.target == "cpu" else ()


@dataclass(frozen=True)
class GpuBuild:
    """What the installation built for GPUs.

    Attributes:
        targets: Compute capabilities of the kernels' machine code: 90 is 9.0.
        kernels_missing: Why there are no kernels; empty if there are.
        plugins_missing: Why there are no TensorRT plugins; empty if there are.
    """

    targets: tuple[int, ...]
    kernels_missing: str
    plugins_missing: str

    @property
    def plugins_missing_because(self) -> str:
        """Why there are no TensorRT plugins."""
        return self.kernels_missing or self.plugins_missing


def gpu_build() -> GpuBuild:
    """What the build wrote down.

    Raises:
        EnvironmentLacksError: the package is not installed.
    """
    path = _installed("gpu_build.json")
    if not path.is_file():
        return GpuBuild((), f"{path} is missing", "")
    found = json.loads(path.read_text())
    missing = found["kernels_missing"]
    targets = () if missing else tuple(map(int, found["targets"].split(",")))
    return GpuBuild(targets, missing, found["plugins_missing"])


def _installed(name: str) -> Path:
    # Not beside this file: an editable install keeps Python and built files apart.
    try:
        found = metadata.distribution("moe-export").locate_file(f"moe_export/lib/{name}")
    except metadata.PackageNotFoundError as error:
        raise EnvironmentLacksError("moe-export is not installed: pip install '.[cpu]'") from error
    return Path(str(found))


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def instruction_set(library: Path) -> str:
    """The instruction set that a library's kernels take here, as MOE_EXPORT_ISA names it.

    Raises:
        EnvironmentLacksError: ``MOE_EXPORT_ISA`` asks for one that does not exist.
    """
    function = ctypes.CDLL(str(library)).moe_export_instruction_set
    function.restype = ctypes.c_char_p
    name = function()
    if name is None:
        raise EnvironmentLacksError(
            "MOE_EXPORT_ISA names no instruction set: see plugins/README.md"
        )
    return str(name.decode())
