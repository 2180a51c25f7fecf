"""An MXFP4 checkpoint that is stored in MXFP4 again."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moe_export.ops.nodes import moe_nodes, node_attributes
from moe_export.pipeline import build_source
from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress

pytest.importorskip("transformers")
from tests.pack.test_packed_weights import place, read_weight
from tests.sources.quantized_files import write_mxfp4


@pytest.mark.slow
def test_mxfp4_checkpoint_keeps_its_numbers_bit_for_bit(tmp_path):
    _, values = write_mxfp4(tmp_path / "source")
    plan = BuildPlan(output=tmp_path / "bundle", weights="mxfp4", with_past=True)
    bundle = build_source(str(tmp_path / "source"), plan, SilentProgress())
    assert bundle.verified
    nodes = list(moe_nodes(ir.load(tmp_path / "bundle" / "model.onnx"), "GroupedExperts"))
    assert len(nodes) == 2
    for number, node in enumerate(nodes):
        attributes = node_attributes(node)
        stored = values[f"model.layers.{number}.mlp.experts.gate_up_proj"][1].T
        down = values[f"model.layers.{number}.mlp.experts.down_proj"][1].T
        weights = (np.concatenate([stored[0::2], stored[1::2]]), down)
        for matrix, value, expected in zip(
            attributes.matrices, node.inputs[3:5], weights, strict=True
        ):
            panels = value.const_value.numpy()[1].view(np.uint8)
            panels = panels.reshape(-(-matrix.rows // 32), -1)
            for row, column in np.ndindex(expected.shape):
                panel, inside = place(matrix, row)
                found = read_weight(attributes.storage, panels[panel], inside, column)
                assert found == expected[row, column]
