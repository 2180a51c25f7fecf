"""The plugin library as a loader meets it: one binary for every TensorRT and every distribution."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest

from moe_export.errors import EnvironmentLacksError
from moe_export.runners.library import plugin_library_path


@pytest.fixture
def library():
    try:
        return plugin_library_path()
    except EnvironmentLacksError as error:
        pytest.skip(str(error))


def ask(tool, *arguments):
    """What one of binutils says, line by line."""
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool} of binutils")
    done = subprocess.run([tool, *map(str, arguments)], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def test_exports_nothing_but_its_interface(library):
    names = {line.split()[-1] for line in ask("nm", "-D", "--defined-only", library)}
    own = {"moe_export_last_error", "moe_export_trt_version"}
    assert names == {"getCreators", "setLoggerFinder"} | own


def test_needs_neither_tensorrt_nor_cuda_to_load(library):
    needed = [line for line in ask("readelf", "-d", library) if "NEEDED" in line]
    names = {line.split("[")[1].split(".so")[0] for line in needed}
    assert names <= {"libc", "libm", "libdl", "ld-linux-x86-64", "ld-linux-aarch64"}


def test_says_its_version_and_no_error_yet(library):
    loaded = ctypes.CDLL(str(library))
    loaded.moe_export_trt_version.restype = ctypes.c_char_p
    loaded.moe_export_last_error.restype = ctypes.c_char_p
    assert loaded.moe_export_trt_version().decode().count(".") >= 2
    assert loaded.moe_export_last_error() == b""
