"""A layer of ops on rows from PyTorch to ONNX Runtime, with the library and without it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from moe_export.lower.functions import attach_functions
from moe_export.ops.contract import check_model
from moe_export.ops.onnx_ops import translation_table
from moe_export.ops.portable import OPSET
from moe_export.ops.spec import ExpertCombine, ExpertDispatch, GroupedMatMul, TopKGating
from moe_export.ops.torch_ops import expert_combine, expert_dispatch, grouped_matmul, top_k_gating
from moe_export.runners.library import ort_library_path
from moe_export.tolerances import LAYER_TOLERANCE, relative_error


class NormedExperts(nn.Module):
    """Experts of two products with a norm of their own between them."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def draw(*shape):
            return nn.Parameter(torch.randn(shape, generator=generator) / shape[-1] ** 0.5)

        self.router, self.scale = draw(5, 12), draw(5, 8)
        self.up, self.up_bias, self.down = draw(5, 8, 12), draw(5, 8), draw(5, 12, 8)

    def forward(self, x):
        ids, weights = top_k_gating(x @ self.router.T, TopKGating(top_k=2))
        dispatch = ExpertDispatch(num_experts=5, hidden_size=12)
        rows, row_map, ends, experts = expert_dispatch(x, ids, dispatch)
        up = GroupedMatMul(num_experts=5, in_features=12, out_features=8, has_bias=True)
        rows = grouped_matmul(rows, self.up, ends, up, self.up_bias)
        norm = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-6)
        rows = nn.functional.silu(norm * self.scale.index_select(0, experts))
        down = GroupedMatMul(num_experts=5, in_features=8, out_features=12)
        rows = grouped_matmul(rows, self.down, ends, down)
        return expert_combine(rows, row_map, weights, ExpertCombine(hidden_size=12))


def make_session(with_library, path):
    tokens = torch.export.Dim("tokens")
    program = torch.onnx.export(
        NormedExperts().eval(),
        (torch.randn(5, 12),),
        dynamic_shapes=({0: tokens},),
        custom_translation_table=translation_table(),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    check_model(program.model)
    attach_functions(program.model)
    ir.save(program.model, path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if with_library:
        options.register_custom_ops_library(str(ort_library_path()))
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("with_library", [False, True])
def test_layer_gives_what_eager_gives_for_any_number_of_tokens(with_library, tmp_path):
    session = make_session(with_library, tmp_path / "layer.onnx")
    model = NormedExperts().eval()
    for num_tokens in (0, 1, 5, 64):
        x = torch.randn(num_tokens, 12)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        expected = model(x).detach().numpy()
        assert found.shape == expected.shape
        assert np.isfinite(found).all()
        assert relative_error(found, expected) <= LAYER_TOLERANCE
