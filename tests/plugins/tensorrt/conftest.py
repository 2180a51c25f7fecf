"""TensorRT-RTX with the plugins, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import save

from moe_export.errors import EnvironmentLacksError
from moe_export.runners.library import plugin_library_path


class EngineBuilder:
    """Asks the process of ``engine_worker.py``; starts it again where it has ended."""

    def __init__(self, library, folder):
        self._library = library
        self._folder = folder
        self._process = None

    def _start(self):
        # The parser opens libtensorrt_rtx.so, and the package has .so.1 alone.
        libs = Path(importlib.util.find_spec("tensorrt_rtx_libs").submodule_search_locations[0])
        link = self._folder / "libtensorrt_rtx.so"
        if not link.is_symlink():
            link.symlink_to(libs / "libtensorrt_rtx.so.1")
        paths = f"{self._folder}{os.pathsep}{os.environ.get('LD_LIBRARY_PATH', '')}"
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("engine_worker.py")), str(self._library)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"LD_LIBRARY_PATH": paths},
        )

    def build(self, model, profile, capability="SM80", look_for=()):
        """What TensorRT-RTX makes of a model: see ``engine_worker.build``."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        file = self._folder / "model.onnx"
        save(model, file)
        request = {"model": str(file), "profile": profile, "capability": capability}
        self._process.stdin.write(json.dumps(request | {"look_for": list(look_for)}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the process ended with {self._process.wait()}"
        return json.loads(line)

    def close(self):
        """End the process."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait(timeout=60)


@pytest.fixture(scope="session")
def engine_builder(tmp_path_factory):
    """Parses models and builds engines."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install '.[tensorrt-rtx]'")
    try:
        library = plugin_library_path()
    except EnvironmentLacksError as error:
        pytest.skip(str(error))
    builder = EngineBuilder(library, tmp_path_factory.mktemp("engines"))
    yield builder
    builder.close()
