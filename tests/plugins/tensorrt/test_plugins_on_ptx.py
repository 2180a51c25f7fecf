"""The plugins from their creation to ``enqueue``, over the kernels' PTX on the CPU."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.plugins.cuda.on_cpu import BUILD, MISSING, PTX
from tests.ptx.build import build

PROGRAM = BUILD / "tests" / "tensorrt" / "test_plugin_calls_on_ptx"
# What calls of few tokens take.
ELEMENTS = ("fp32", "fp16", "bf16")
PRODUCTS = [f"{f}_{e}_{e}_m16" for f in ("matmul", "gated_matmul") for e in ELEMENTS]


@pytest.mark.parametrize("capability", [80, 90], ids=("sm80", "sm90"))
def test_plugins_compute_the_contract(tmp_path, capability):
    if not PROGRAM.exists():
        pytest.skip(MISSING)
    for name in ["kernels", *(f"{product}_sm{capability}" for product in PRODUCTS)]:
        compiled = build((PTX / f"{name}.ptx").read_text(), name=f"{name}.ptx")
        (tmp_path / f"{name}.so").symlink_to(compiled)
    variables = {
        "MOE_EXPORT_PTX_KERNELS": str(tmp_path),
        "MOE_EXPORT_TEST_CAPABILITY": str(capability),
    }
    done = subprocess.run(
        [PROGRAM], env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
