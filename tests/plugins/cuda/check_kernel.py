"""Whether a kernel's PTX computes what it should.

    python -m tests.plugins.cuda.check_kernel NAME PTX

NAME is a file of the build: ``gated_matmul_bf16_int4_m16_sm80`` or ``kernels``, say. PTX is run in
its place. Ends with 0 if all is well: what `tests.ptx.mutate` asks for.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from moe_export.gpu.layers import Form, UploadedLayer, list_forms, make_layer
from moe_export.ops import reference, reference_rows
from moe_export.ops.spec import ExpertDispatch, GroupedExperts, TopKGating
from moe_export.tolerances import GPU_TOLERANCES
from tests.plugins.cuda.on_cpu import SANITIZE, HostDevice, LibraryOnCpu
from tests.plugins.cuda.run_gpu_op import run_op
from tests.ptx.build import build

_GATED = GroupedExperts(
    num_experts=5,
    hidden_size=200,
    intermediate_size=75,
    alpha=1.702,
    limit=2.0,
    up_offset=1.0,
    has_bias=True,
    first_expert=2,
)
_LAYERS = (
    _GATED,
    replace(_GATED, activation="gelu", alpha=1.0, limit_on="output", weight_on="input"),
    GroupedExperts(num_experts=3, hidden_size=72, intermediate_size=130, activation="gelu_tanh"),
    GroupedExperts(
        num_experts=4, hidden_size=130, intermediate_size=64, gated=False, activation="relu2"
    ),
)


def main() -> int:
    name, ptx = sys.argv[1], Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        capability = 90 if name.endswith("sm90") else 80
        (Path(folder) / f"{name}.so").symlink_to(
            build(ptx.read_text(), sanitize=SANITIZE, name=ptx.name)
        )
        library = LibraryOnCpu(capability, Path(folder))
        right = _check_rows(library) if name == "kernels" else _check_form(library, name)
    return 0 if right else 1


def _check_form(library: LibraryOnCpu, name: str) -> bool:
    """Layers of the form and tile that the kernel is of."""
    _, element, stored, tile, _ = name.removeprefix("gated_").split("_")
    forms = [form for form in list_forms() if _stored(form) == (element, stored)]
    tile_rows = int(tile.removeprefix("m"))
    library.need_form(element, forms[0].weights, tile_rows)
    return all(
        _check_layer(library, form, attributes, tile_rows, tokens)
        for form in forms
        for attributes in (_LAYERS[:1] if SANITIZE else _LAYERS)
        for tokens in (3, 40)
    )


def _stored(form: Form) -> tuple[str, str]:
    halves = "b32" if form.weights.block_size == 32 else ""
    return form.element_type, form.weights.weight_type + halves


def _check_layer(
    library: LibraryOnCpu, form: Form, attributes: GroupedExperts, tile: int, tokens: int
) -> bool:
    rng = np.random.default_rng(tokens)
    first = attributes.first_expert
    ids = rng.integers(first - 1, first + attributes.num_experts, (tokens, 3)).astype(np.int64)
    layer = make_layer(form, attributes, ids, rng)
    device = HostDevice()
    os.environ["MOE_EXPORT_TEST_SEED"] = str(tokens)  # another order of threads
    uploaded = UploadedLayer(layer, library, device)
    uploaded.run(tile)
    expected = reference.grouped_experts(attributes=layer.attributes, **layer.inputs)
    error = np.abs(uploaded.output() - expected).max() / np.abs(expected).max()
    return bool(error <= GPU_TOLERANCES[form.element_type])


def _check_rows(library: LibraryOnCpu) -> bool:
    """What CUDA C++ computes: gating, sorting few and many pairs, copies and sums."""
    library.need("matmul_fp32_fp32_m16", "gated_matmul_fp32_fp32_m16")
    rng = np.random.default_rng(0)
    gating = TopKGating(
        top_k=5,
        score_function="sigmoid",
        num_groups=4,
        top_groups=2,
        group_score="top2_sum",
        has_selection_bias=True,
        renormalize=True,
        scale=2.5,
    )
    softmax = TopKGating(top_k=3, weight_function="softmax")
    for attributes, experts in ((gating, 72), (softmax, 45)):
        logits = rng.standard_normal((9, experts), np.float32)
        bias = rng.standard_normal(experts).astype(np.float32)
        inputs = {"logits": logits} | ({"selection_bias": bias} if attributes is gating else {})
        ids, weights = run_op(library, attributes, inputs)
        expected = reference.top_k_gating(logits, attributes, inputs.get("selection_bias"))
        if not np.array_equal(ids, expected[0]) or not np.allclose(weights, expected[1], atol=1e-5):
            return False
    dispatch = ExpertDispatch(num_experts=6, hidden_size=5, first_expert=1)
    for tokens in (20, 200):
        x = rng.standard_normal((tokens, 5), np.float32)
        inputs = {"x": x, "expert_ids": rng.integers(0, 8, (tokens, 3)).astype(np.int32)}
        found = run_op(library, dispatch, inputs)
        expected = reference_rows.expert_dispatch(**inputs, attributes=dispatch)
        if not all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)):
            return False
    form = list_forms()[0]
    return all(
        _check_layer(library, form, _LAYERS[i], 16, tokens) for i, tokens in ((0, 3), (2, 120))
    )


if __name__ == "__main__":
    sys.exit(main())
