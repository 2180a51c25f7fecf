"""The cache's tensors in the traced graph, before a model is written."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from moe_export.capture import stage
from moe_export.capture.axes import dynamic_shapes, name_axes
from moe_export.capture.huggingface import _hidden_rows_as_eager, _name_caches
from moe_export.errors import UnsupportedModelError
from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress
from moe_export.sources.source import load_module
from tests.families.all_families import make_named_model

pytest.importorskip("transformers")
apply_patches = pytest.importorskip("transformers.exporters.exporter_onnx").apply_patches

PLAN = BuildPlan(output=Path("unused"), with_past=True)


@pytest.fixture(scope="module")
def loaded():
    return load_module(make_named_model("mixtral"), None, PLAN, source="test")


def make_graph(inputs, outputs=()):
    values = [
        [ir.Value(name=name, shape=ir.Shape(shape)) for name, shape in side]
        for side in (inputs, outputs)
    ]
    return ir.Model(ir.Graph(*values, nodes=[]), ir_version=10)


def test_batch_and_tokens_vary_and_nothing_else(loaded):
    shapes = dynamic_shapes(loaded.inputs, PLAN, loaded.axis_names())
    assert {name: list(axes) for name, axes in shapes.items()} == {
        "input_ids": [0, 1],
        "attention_mask": [0, 1],
        "position_ids": [0, 1],
        **{c.past: [0, 2] for c in loaded.spec.caches},
    }


def test_axes_are_named_by_what_they_are(loaded):
    name = loaded.spec.caches[0].past
    model = make_graph([("input_ids", ["s1", "s2"]), (name, ["s1", 2, "s3", 16])])
    name_axes(model, loaded.inputs, loaded.axis_names())
    first, second = model.graph.inputs
    assert [str(size) for size in first.shape] == ["batch", "sequence"]
    assert [str(size) for size in second.shape] == ["batch", "2", "past_sequence", "16"]


LEAVES = [f"past_key_values.layers.{i}.{kind}" for i in range(2) for kind in ("keys", "values")]


def test_caches_get_the_names_that_runtimes_know(loaded):
    # The exporter may list them in any order: their names say which they are.
    inputs = [(f"input.{leaf}", ["b", 2, "p", 16]) for leaf in reversed(LEAVES)]
    outputs = [("logits", ["b", "s", 128]), *((f"output.{leaf}", ["b"]) for leaf in LEAVES)]
    model = make_graph(inputs, outputs)
    _name_caches(model, loaded.spec.caches)
    assert [v.name for v in model.graph.inputs] == [
        f"past_key_values.{i}.{kind}" for i in (1, 0) for kind in ("value", "key")
    ]
    assert [v.name for v in model.graph.outputs][:3] == [
        "logits", "present.0.key", "present.0.value",
    ]  # fmt: skip


def test_a_graph_that_leaves_a_tensor_out_is_refused(loaded):
    model = make_graph([(f"input.{leaf}", ["b", 2, "p", 16]) for leaf in LEAVES[:3]])
    with pytest.raises(UnsupportedModelError, match="has 3 of the cache's 4 tensors"):
        _name_caches(model, loaded.spec.caches)


def test_a_fixed_number_of_past_tokens_is_refused(loaded, monkeypatch):
    name = loaded.spec.caches[0].past
    model = make_graph([("input_ids", ["s1", "s2"]), (name, ["s1", 2, 6, 16])])
    monkeypatch.setattr(stage, "_export", lambda *_: model)
    with pytest.raises(UnsupportedModelError, match=rf"with-past: {name} axis 2 is fixed at 6"):
        stage.capture(loaded, (), PLAN, SilentProgress())


LOWEST = torch.finfo(torch.float32).min


@pytest.mark.parametrize("lowest", [LOWEST, -1e30, float("-inf")])
def test_rows_that_a_mask_hides_entirely_stay_as_eager_has_them(lowest):
    # The values' mean where numbers are added, zeros where infinity is.
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 5, 16)
    mask = torch.zeros(2, 1, 5, 5)
    mask[0, :, 0] = mask[1, :, :, 3] = lowest
    mask = mask.expand(2, 2, 5, 5)
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = attend(query, key, value, mask)
    with apply_patches("onnx"), _hidden_rows_as_eager(), apply_patches("dynamo"):
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(found, expected)
    assert bool((found[0, :, 0] == 0).all()) == (lowest == float("-inf"))
