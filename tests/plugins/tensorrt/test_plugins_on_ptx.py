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


def run_plugins(folder, capability, sanitize="", prefix=(), **variables):
    if not PROGRAM.exists():
        pytest.skip(MISSING)
    for name in ["kernels", *(f"{product}_sm{capability}" for product in PRODUCTS)]:
        compiled = build((PTX / f"{name}.ptx").read_text(), sanitize=sanitize, name=f"{name}.ptx")
        (folder / f"{name}.so").symlink_to(compiled)
    variables |= {
        "MOE_EXPORT_PTX_KERNELS": str(folder),
        "MOE_EXPORT_TEST_CAPABILITY": str(capability),
    }
    return subprocess.run(
        [*prefix, PROGRAM], env=os.environ | variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("capability", [80, 90], ids=("sm80", "sm90"))
def test_plugins_compute_the_contract(tmp_path, capability):
    done = run_plugins(tmp_path, capability)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow  # test_sanitizers.py has the kernels by themselves
def test_no_threads_of_a_kernel_race(tmp_path):
    """Under ThreadSanitizer, to which each thread of a block is one; not the host's."""
    command = ["gcc", "-print-file-name=libtsan.so"]
    tsan = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    # Its shadow memory needs addresses that are not drawn.
    prefix = ["setarch", "-R", "env", f"LD_PRELOAD={tsan}"]
    done = run_plugins(tmp_path, 80, "thread", prefix, TSAN_OPTIONS="exitcode=66")
    assert done.returncode == 0, done.stdout + done.stderr
