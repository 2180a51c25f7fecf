"""Where the op library for ONNX Runtime is."""

from __future__ import annotations

from pathlib import Path

from moe_export.errors import EnvironmentLacksError

LIBRARY_NAME = "libmoe_export_ort.so"


def ort_library_path() -> Path:
    """Path of the op library that was built with this package.

    Raises:
        EnvironmentLacksError: the package was installed without it.
    """
    path = Path(__file__).resolve().parent.parent / "lib" / LIBRARY_NAME
    if not path.is_file():
        raise EnvironmentLacksError(
            f"{LIBRARY_NAME} is missing from {path.parent}: install with pip install '.[cpu]', which "
            "builds it (a C++ compiler is needed)"
        )
    return path
