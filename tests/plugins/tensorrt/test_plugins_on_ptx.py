"""The plugins from their creation to ``enqueue``, over the kernels' PTX on the CPU."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.plugins.cuda.host_functions import BUILD, LIBRARY, HostFunctions

PROGRAM = BUILD / "tests" / "tensorrt" / "test_plugin_calls_on_ptx"
FORMS = ("matmul", "gated_matmul")
TILES = {"fp32": (16, 64), "fp16": (16, 64, 128), "bf16": (16, 64, 128)}


@pytest.mark.parametrize("capability", [80, 90])
def test_plugins_compute_the_contract(capability):
    if not PROGRAM.exists() or not LIBRARY.exists():
        pytest.skip(f"{PROGRAM} is not built: no nvcc or triton, or scripts/test.sh did not run")
    with tempfile.TemporaryDirectory() as folder:
        functions = HostFunctions(capability, Path(folder))
        functions.need("kernels")
        for element, rows in TILES.items():
            for tile in rows:
                functions.need(*(f"{f}_{element}_{element}_m{tile}" for f in FORMS))
        done = subprocess.run(
            [PROGRAM], env=os.environ, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
