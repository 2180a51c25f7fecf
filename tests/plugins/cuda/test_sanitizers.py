"""GPU kernels under AddressSanitizer and ThreadSanitizer, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.plugins.cuda.on_cpu import LIBRARY, MISSING, PTX

# Sorting, gating, copies and sums; tiles of few and of many rows, on both kinds of tensor cores.
KERNELS = ("kernels", "gated_matmul_bf16_int4_m16_sm80", "gated_matmul_fp16_fp16_m64_sm90")


def run_check(name, **variables):
    if not LIBRARY.exists():
        pytest.skip(MISSING)
    asan = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    environment = {
        "LD_PRELOAD": asan.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "MOE_EXPORT_TEST_SANITIZE": "address",
    }
    command = [sys.executable, "-m", "tests.plugins.cuda.check_kernel", name, PTX / f"{name}.ptx"]
    return subprocess.run(
        command,
        env=os.environ | environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", KERNELS)
def test_no_kernel_leaves_its_buffers(name):
    done = run_check(name)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_workspace_that_is_too_small_is_seen():
    done = run_check("kernels", MOE_EXPORT_TEST_HALF_WORKSPACE="1")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
