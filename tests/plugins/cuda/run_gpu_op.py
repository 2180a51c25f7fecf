"""One op on the GPU's kernels, run on the CPU: a backend for tests that compare all of them."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from moe_export.ops.spec import (
    ExpertCombine,
    ExpertDispatch,
    GroupedExperts,
    GroupedMatMul,
    TopKGating,
)
from moe_export.pack.padded_rows import pack_padded_rows
from tests.plugins.cuda.host_functions import LIBRARY, HostFunctions, aligned


@cache
def _functions() -> HostFunctions:
    if not LIBRARY.exists():
        pytest.skip(f"{LIBRARY} is not built: no nvcc or triton, or scripts/test.sh did not run")
    folder = Path(tempfile.mkdtemp(prefix="moe_export_kernels_"))
    functions = HostFunctions(80, folder)
    functions.need("kernels")
    functions.need("matmul_fp32_fp32_m16", "gated_matmul_fp32_fp32_m16")
    return functions


def run_on_gpu_kernels(attributes, inputs):
    """``run(attributes, inputs by name) -> outputs``, in float32."""
    run = {
        TopKGating: _run_gating,
        GroupedExperts: _run_experts,
        ExpertDispatch: _run_dispatch,
        GroupedMatMul: _run_matmul,
        ExpertCombine: _run_combine,
    }[type(attributes)]
    return run(_functions(), attributes, {name: aligned(array) for name, array in inputs.items()})


def _empty(shape, dtype=np.float32):
    """What is not written shows: NaN, or a number that is no row."""
    return aligned(np.full(shape, np.nan if dtype == np.float32 else -77, dtype))


def pack(attributes, weight, columns, scale=None, zero=None):
    """A matrix ``[E, N, K]`` as ``cuda_v1``."""
    parts = [
        (weight[e], *(p if p is None else p[e] for p in (scale, zero))) for e in range(len(weight))
    ]
    options = {"columns": columns, "block_size": attributes.block_size}
    return aligned(
        np.stack([pack_padded_rows(attributes.weight_type, *part, **options) for part in parts])
    )


def _run_gating(functions, a, inputs):
    logits = inputs["logits"]
    ids = _empty((len(logits), a.top_k), np.int32)
    weights = _empty(ids.shape)
    bias = inputs.get("selection_bias")
    functions.call("run_top_k_gating", a, "fp32", *logits.shape, logits, bias, ids, weights)
    return [ids, weights]


def _run_experts(functions, a, inputs):
    x, ids = inputs["x"], inputs["expert_ids"]
    y = _empty(x.shape)
    functions.call(
        "run_grouped_experts",
        *(
            replace(a, weight_layout="cuda_v1"),
            "fp32",
            0,
            *ids.shape,
            x,
            ids,
            ids.dtype == np.int64,
        ),
        inputs["expert_weights"],
        pack(a, inputs["up_weight"], a.hidden_size),
        pack(a, inputs["down_weight"], a.intermediate_size),
        *(inputs.get(name) for name in ("up_bias", "down_bias")),
        y,
    )
    return [y]


def _run_dispatch(functions, a, inputs):
    x, ids = inputs["x"], inputs["expert_ids"]
    slots = ids.size
    outputs = [
        _empty((slots, a.hidden_size)),
        *(_empty(shape, np.int32) for shape in (ids.shape, (a.num_experts,), (slots,))),
    ]
    is_wide = ids.dtype == np.int64
    functions.call("run_expert_dispatch", a, "fp32", *ids.shape, x, ids, is_wide, *outputs)
    return outputs


def _run_matmul(functions, a, inputs):
    rows = inputs["rows"]
    y = _empty((len(rows), a.out_features))
    functions.call(
        "run_grouped_matmul",
        *(replace(a, weight_layout="cuda_v1"), "fp32", 0, len(rows), rows),
        *(pack(a, inputs["weight"], a.in_features), inputs["group_ends"], inputs.get("bias"), y),
    )
    return [y]


def _run_combine(functions, a, inputs):
    row_map, rows = inputs["row_map"], inputs["rows"]
    y = _empty((len(row_map), a.hidden_size))
    functions.call(
        "run_expert_combine",
        *(a, "fp32", len(rows), *row_map.shape, rows, row_map, inputs["expert_weights"], y),
    )
    return [y]
