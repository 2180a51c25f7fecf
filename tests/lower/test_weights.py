"""Weights reach the expert node without an operator between, whatever the checkpoint's layout."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

import moe_export
from tests.families.all_families import make_named_model

pytest.importorskip("transformers")


def test_transposed_interleaved_weights_are_stored_row_major(tmp_path):
    model = make_named_model("gpt_oss")
    moe_export.build(model, output=tmp_path / "bundle", target="portable", verify=False)
    graph = ir.load(tmp_path / "bundle" / "model.onnx").graph
    node = next(n for n in graph if n.op_type == "GroupedExperts")
    up, _, up_bias, _ = node.inputs[3:]
    stored = model.model.layers[0].mlp.experts
    gate_up = stored.gate_up_proj.detach().transpose(1, 2)
    expected = torch.cat([gate_up[:, 0::2], gate_up[:, 1::2]], dim=1)
    assert torch.equal(torch.from_numpy(up.const_value.numpy()), expected)
    bias = stored.gate_up_proj_bias.detach()
    expected = torch.cat([bias[:, 0::2], bias[:, 1::2]], dim=1)
    assert torch.equal(torch.from_numpy(up_bias.const_value.numpy()), expected)
    assert not any(n.op_type == "Transpose" and n.inputs[0] is up for n in graph)


def test_plain_weights_are_stored_as_they_are(tmp_path):
    model = make_named_model("mixtral")
    moe_export.build(model, output=tmp_path / "bundle", target="portable", verify=False)
    graph = ir.load(tmp_path / "bundle" / "model.onnx").graph
    node = next(n for n in graph if n.op_type == "GroupedExperts")
    stored = model.model.layers[0].mlp.experts.gate_up_proj
    assert torch.equal(torch.from_numpy(node.inputs[3].const_value.numpy()), stored)
