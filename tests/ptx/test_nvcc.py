"""Functions as nvcc compiles them, with its libraries' tables and local memory."""

from __future__ import annotations

import math
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.ptx.run import load_kernels

NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")

SOURCE = """
#define APPLY(name, expression)                                          \\
  extern "C" __global__ void name(const float* x, float* y, int n) {     \\
    const int i = blockIdx.x * blockDim.x + threadIdx.x;                 \\
    if (i < n) { const float v = x[i]; y[i] = expression; }              \\
  }
FUNCTIONS
extern "C" __global__ void local_memory(const float* x, float* y, int n) {
  float values[8];
  for (int i = 0; i < 8; ++i) values[i] = x[i] * 2;
  const int i = threadIdx.x;
  if (i < n) y[i] = values[static_cast<int>(x[i]) & 7];
}
extern "C" __global__ void cases(const float* x, float* y, int n) {
  const int i = threadIdx.x;
  if (i >= n) return;
  switch (static_cast<int>(x[i])) {
    case 0: y[i] = x[1]; break;
    case 1: y[i] = x[2] + 1; break;
    case 2: y[i] = sqrtf(x[3]); break;
    case 3: y[i] = -x[4]; break;
    case 4: y[i] = x[5] * x[5]; break;
    case 5: y[i] = 77; break;
    default: y[i] = i;
  }
}
extern "C" __global__ void divide(const long long* x, long long* y, int n) {
  const int i = threadIdx.x;
  if (i < n) y[i] = x[i] / x[n - 1 - i];
}
"""

FUNCTIONS = {
    "expf": math.exp,
    "log1pf": math.log1p,
    "erff": math.erf,
    "tanhf": math.tanh,
    "sqrtf": math.sqrt,
    "logf": math.log,
    "powf": lambda v: v**2.5,
    "sinf": math.sin,
}
CALLS = {name: f"{name}(v)" for name in FUNCTIONS} | {"powf": "powf(v, 2.5f)"}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    if NVCC is None:
        pytest.skip("nvcc is not installed")
    folder = tmp_path_factory.mktemp("nvcc")
    source, ptx = folder / "functions.cu", folder / "functions.ptx"
    uses = "\n".join(f"APPLY(use_{name}, {call})" for name, call in CALLS.items())
    source.write_text(SOURCE.replace("FUNCTIONS", uses))
    subprocess.run([NVCC, "-ptx", "-arch=compute_80", str(source), "-o", str(ptx)], check=True)
    return load_kernels(Path(ptx))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_as_exact_as_cuda_says(kernels, name):
    x = np.concatenate([np.linspace(0.01, 4, 200), np.geomspace(1e-6, 80, 200)]).astype(np.float32)
    y = np.zeros_like(x)
    kernels[f"use_{name}"].launch(4, 128, 0, [x, y, len(x)])
    expected = np.array([FUNCTIONS[name](float(value)) for value in x])
    units = np.abs(y - expected) / np.spacing(np.abs(expected).astype(np.float32))
    assert units.max() <= 4


def test_arrays_in_local_memory(kernels):
    x = np.arange(8, dtype=np.float32)[::-1].copy()
    y = np.zeros_like(x)
    kernels["local_memory"].launch(1, 32, 0, [x, y, 8])
    np.testing.assert_array_equal(y, [2 * x[int(v)] for v in x])


def test_switches(kernels):
    x = np.array([0, 1, 2, 3, 4, 5, 6, 7], np.float32)
    y = np.zeros_like(x)
    kernels["cases"].launch(1, 32, 0, [x, y, 8])
    np.testing.assert_allclose(y, [1, 3, 3**0.5, -4, 25, 77, 6, 7], rtol=1e-6)


def test_long_integers_are_divided(kernels):
    x = np.array([7, -(2**40), 12345678901234, 3, -9, 2**62], np.int64)
    y = np.zeros_like(x)
    kernels["divide"].launch(1, 32, 0, [x, y, len(x)])
    pairs = zip(x.tolist(), x[::-1].tolist(), strict=True)
    assert y.tolist() == [math.trunc(Fraction(a, b)) for a, b in pairs]
