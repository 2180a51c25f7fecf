"""The cache's tensors in the traced graph, before a model is written."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from moe_export.capture import stage
from moe_export.capture.axes import dynamic_shapes, name_axes
from moe_export.capture.huggingface import _name_caches
from moe_export.errors import UnsupportedModelError
from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress
from moe_export.sources.source import load_module
from tests.parity.families import make_model

pytest.importorskip("transformers")

PLAN = BuildPlan(output=Path("unused"), with_past=True)


@pytest.fixture(scope="module")
def loaded():
    return load_module(make_model("mixtral"), None, PLAN, source="test")


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
