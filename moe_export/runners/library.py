"""Where the op library for ONNX Runtime is."""

from __future__ import annotations

import ctypes
from importlib import metadata
from pathlib import Path

from moe_export.errors import EnvironmentLacksError

LIBRARY_NAME = "libmoe_export_ort.so"


def ort_library_path() -> Path:
    """Path of the op library that was built when this package was installed.

    Raises:
        EnvironmentLacksError: the package is not installed, or without the library.
    """
    # Not beside this file: an editable install keeps Python and built files apart.
    try:
        found = metadata.distribution("moe-export").locate_file(f"moe_export/lib/{LIBRARY_NAME}")
    except metadata.PackageNotFoundError as error:
        raise EnvironmentLacksError("moe-export is not installed: pip install '.[cpu]'") from error
    path = Path(str(found))
    if not path.is_file():
        raise EnvironmentLacksError(
            f"{path} is missing: install again with pip install '.[cpu]', which builds it "
            "(a C++ compiler is needed)"
        )
    return path


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
