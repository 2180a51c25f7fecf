"""One op on the GPU's kernels, run on the CPU: a backend for tests that compare all of them."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from moe_export.gpu.layers import Layer, UploadedLayer, pack_matrix
from moe_export.ops.spec import (
    ExpertCombine,
    ExpertDispatch,
    GroupedExperts,
    GroupedMatMul,
    TopKGating,
)
from tests.plugins.cuda.on_cpu import LIBRARY, MISSING, HostDevice, LibraryOnCpu


@cache
def _library() -> LibraryOnCpu:
    library = LibraryOnCpu(80, Path(tempfile.mkdtemp(prefix="moe_export_kernels_")))
    library.need("matmul_fp32_fp32_m16", "gated_matmul_fp32_fp32_m16")
    return library


def run_on_gpu_kernels(attributes, inputs):
    """``run(attributes, inputs by name) -> outputs``, in float32."""
    if not LIBRARY.exists():
        pytest.skip(MISSING)
    library = _library()
    library.use()
    return run_op(library, attributes, inputs)


def run_op(library, attributes, inputs):
    """As `run_on_gpu_kernels`, with kernels that the caller has chosen."""
    if isinstance(attributes, GroupedExperts):
        return _run_experts(library, attributes, inputs)
    run = {
        TopKGating: _run_gating,
        ExpertDispatch: _run_dispatch,
        GroupedMatMul: _run_matmul,
        ExpertCombine: _run_combine,
    }[type(attributes)]
    return run(_Call(library), attributes, inputs)


class _Call:
    """A call whose arrays are copied to the device, and whose outputs are copied back."""

    def __init__(self, library):
        self.library = library
        self.device = HostDevice()
        self.outputs = []

    def output(self, shape, dtype=np.float32):
        like = np.empty(shape, dtype)
        self.outputs.append((self.device.allocate(like.nbytes), like))

    def __call__(self, name, *arguments, workspace=None):
        scratch = [] if workspace is None else [self.device.allocate(workspace)]
        placed = [self.device.upload(a) if isinstance(a, np.ndarray) else a for a in arguments]
        addresses = [address for address, _ in self.outputs]
        self.library.call(name, *placed, *addresses, *scratch, None)
        return [self.device.download(address, like) for address, like in self.outputs]


def _run_experts(library, attributes, inputs):
    uploaded = UploadedLayer(Layer(attributes, "fp32", inputs), library, HostDevice())
    uploaded.run()
    return [uploaded.output()]


def _run_gating(call, a, inputs):
    logits = inputs["logits"]
    call.output((len(logits), a.top_k), np.int32)
    call.output((len(logits), a.top_k))
    bias = inputs.get("selection_bias")
    return call("top_k_gating", a, "fp32", *logits.shape, logits, bias)


def _run_dispatch(call, a, inputs):
    x, ids = inputs["x"], inputs["expert_ids"]
    call.output((ids.size, a.hidden_size))
    for shape in (ids.shape, (a.num_experts,), (ids.size,)):
        call.output(shape, np.int32)
    is_wide = int(ids.dtype == np.int64)
    scratch = call.library.number("expert_dispatch_workspace", a, ids.size)
    return call("expert_dispatch", a, "fp32", *ids.shape, x, ids, is_wide, workspace=scratch)


def _run_matmul(call, a, inputs):
    rows = inputs["rows"]
    call.output((len(rows), a.out_features))
    weight = pack_matrix(a, inputs["weight"], columns=a.in_features)
    a = replace(a, weight_layout="cuda_v1")
    scratch = call.library.number("grouped_matmul_workspace", a, "fp32", len(rows))
    given = (rows, weight, inputs["group_ends"], inputs.get("bias"))
    return call("grouped_matmul", a, "fp32", 0, len(rows), *given, workspace=scratch)


def _run_combine(call, a, inputs):
    row_map, rows = inputs["row_map"], inputs["rows"]
    call.output((len(row_map), a.hidden_size))
    given = (rows, row_map, inputs["expert_weights"])
    return call("expert_combine", a, "fp32", len(rows), *row_map.shape, *given)
