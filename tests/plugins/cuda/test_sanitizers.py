"""GPU kernels under AddressSanitizer and ThreadSanitizer, in processes of their own."""

from __future__ import annotations

import pytest

from tests.plugins.cuda.check_kernel import run_check
from tests.plugins.cuda.on_cpu import LIBRARY, MISSING, PTX

# Gating, sorting, copies and sums; tiles of few and of many rows, on both kinds of tensor cores.
CHECKS = (
    ("kernels", "address"),
    ("kernels", "thread"),
    ("gated_matmul_bf16_int4_m16_sm80", "address"),
    ("gated_matmul_bf16_int4_m16_sm80", "thread"),
    ("gated_matmul_fp16_fp16_m64_sm90", "address"),
)


def check(name, sanitize, **variables):
    if not LIBRARY.exists():
        pytest.skip(MISSING)
    return run_check(name, PTX / f"{name}.ptx", sanitize, **variables)


@pytest.mark.parametrize(("name", "sanitize"), CHECKS)
def test_kernels_leave_no_buffer_and_do_not_race(name, sanitize):
    done = check(name, sanitize)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_workspace_that_is_too_small_is_seen():
    done = check("gated_matmul_bf16_int4_m16_sm80", "address", MOE_EXPORT_TEST_HALF_WORKSPACE="1")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
