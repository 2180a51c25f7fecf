"""The written files: pages, names, and parts of a model that share its weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moe_export.lower.stage import LoweredModel
from moe_export.lower.stored_weights import expert_nodes
from moe_export.ops.spec import GroupedExperts
from moe_export.pack.model_file import EXACT_NAME, pack, write_node
from moe_export.pack.stored_layers import stored_layers
from moe_export.runners.library import ort_library_path
from moe_export.runners.onnxruntime import OnnxRuntimeRunner
from tests.pack.test_packed_weights import SIZES, model_of

ATTRIBUTES = GroupedExperts(**SIZES, has_bias=True)


@pytest.fixture
def lowered():
    rng = np.random.default_rng(0)
    shapes = ATTRIBUTES.weight_shapes()
    model = model_of(ATTRIBUTES, {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()})
    model.graph.opset_imports.update({"": 20, "moe_export": 1})
    y = model.graph.outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    return LoweredModel(model, ())


def stored_values(path):
    return {v.name: v.const_value for v in ir.load(path).graph.initializers.values()}


def test_tensors_of_the_data_file_begin_on_pages(lowered, tmp_path):
    packed = pack(lowered, tmp_path)
    tensors = stored_values(packed.path)
    external = [t for t in tensors.values() if isinstance(t, ir.ExternalTensor)]
    assert sorted(t.name for t in external) == ["down_weight.cpu_v1", "up_weight.cpu_v1"]
    assert all(tensor.offset % 4096 == 0 for tensor in external)
    assert {t.name for t in tensors.values()} - {t.name for t in external} == {
        "up_bias",
        "down_bias",
    }


def test_other_targets_stay_row_major(lowered, tmp_path):
    tensors = stored_values(pack(lowered, tmp_path, "portable").path)
    assert list(tensors["up_weight"].shape) == [2, 64, 64]


def test_two_models_lie_side_by_side_until_one_is_removed(lowered, tmp_path):
    pack(lowered, tmp_path)
    exact = pack(lowered, tmp_path, name=EXACT_NAME)
    assert (exact.path.name, exact.data_path.name) == ("float32.onnx", "float32.onnx.data")
    exact.remove()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_stored_layers_count_what_is_written(lowered, tmp_path):
    (stored,) = stored_layers(pack(lowered, tmp_path)).values()
    assert (stored.weight_type, stored.layout) == ("fp32", "cpu_v1")
    assert stored.float32_bytes == 4 * 2 * (64 * 64 + 64 * 32)
    # Gated up: 2 panels of 64 columns; down: 2 panels, whose 32 columns are filled up to 64.
    assert stored.bytes == 2 * (2 + 2) * 64 * 32 * 4


def test_a_node_alone_gives_what_it_gives_in_the_model(lowered, tmp_path):
    packed = pack(lowered, tmp_path)
    ((node, _),) = expert_nodes(lowered.model)
    path = write_node(packed, node, ("tokens", "expert_ids", "expert_weights"), "node.onnx")
    rng = np.random.default_rng(1)
    x, weights = rng.standard_normal((5, 64), np.float32), rng.random((5, 2), np.float32)
    feeds = {"expert_ids": rng.integers(0, 2, (5, 2), np.int32), "expert_weights": weights}
    library = ort_library_path()
    whole = OnnxRuntimeRunner(packed.path, library).run({"x": x, **feeds})["y"]
    alone = OnnxRuntimeRunner(path, library).run({"tokens": x, **feeds})["y"]
    np.testing.assert_array_equal(alone, whole)
