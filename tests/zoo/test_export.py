"""Every layer of the zoo is exported and agrees with eager, or is refused with its path."""

from __future__ import annotations

import pytest

from moe_export.errors import UnsupportedModelError
from tests.zoo import harness
from tests.zoo.catalog import CLASSIC, REFUSED, STYLES

LAYERS = {layer.name: layer for layer in CLASSIC + STYLES}
# Some 130 builds: scripts/test.sh --all runs those beyond the classic systems.
EVERY = [layer.name for layer in CLASSIC]
EVERY += [pytest.param(layer.name, marks=pytest.mark.slow) for layer in STYLES]

# Layers whose number of experts is doubled; all take ``num_experts``.
GROWING = [
    "noisy_top_k",
    "gshard_top2",
    "switch_top1",
    "mixtral",
    "deepseek_v3",
    "expert_choice_mesh",
    "expert_choice_vmoe",
    "soft_moe",
    "hash_by_position",
    "dense_soft",
    "top2_of_16",
    "parallel_lists",
    "dense_with_zeros",
    "gather_einsum",
    "flattened",
    "numbered_parameters",
    "sort_split_cat",
    "capacity_buffers",
    "threshold",
]


@pytest.mark.parametrize("name", EVERY)
def test_export_agrees_with_eager(name, tmp_path):
    layer = LAYERS[name]
    model = layer.make()
    bundle = harness.build(model, layer, tmp_path / "b")
    assert bundle.verified
    for inputs in (layer.inputs, *layer.other_inputs):
        harness.compare(bundle, model, inputs())
    harness.check_layers(bundle, layer)


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWING)
def test_graph_does_not_grow_with_experts(name, tmp_path):
    layer = LAYERS[name]
    counts = []
    for times in (1, 2):
        model = layer.make(num_experts=times * layer.num_experts)
        bundle = harness.build(model, layer, tmp_path / str(times), verify=False)
        counts.append(len(harness.nodes(bundle)))
    assert counts[1] <= counts[0]


@pytest.mark.slow
@pytest.mark.parametrize("layer", REFUSED, ids=lambda layer: layer.name)
def test_refused_with_its_path(layer, tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"encoder\.ffn"):
        harness.build(layer.make(), layer, tmp_path / "b")
    assert not (tmp_path / "b").exists()
