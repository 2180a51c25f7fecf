"""Families without the experts hook: encoders with decoders, images and texts, against eager."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import moe_export
from moe_export.errors import UnsupportedModelError
from moe_export.sources.model import name_outputs
from tests.families.catalogue import Family, make_model
from tests.families.sweep import RELATIVE_ERROR
from tests.families.without_hook import WITHOUT_HOOK

pytest.importorskip("transformers")

# Batch, length and the side that is padded, then the decoder's length, where there is one.
SHAPES = (
    (1, 1, None, 1),
    (3, 2, None, 1),
    (1, 13, None, 29),
    (3, 13, "left", 4),
    (2, 40, "right", 17),
)
NO_CACHE = {"use_cache": False}


def as_parameters(families: list[Family]) -> list[Any]:
    """One test parameter per family; those outside the default run are marked slow."""
    return [
        pytest.param(f, id=f.name, marks=() if f.in_ci else (pytest.mark.slow,)) for f in families
    ]


EXPORTED = as_parameters([f for f in WITHOUT_HOOK if not f.refused])
REFUSED = as_parameters([f for f in WITHOUT_HOOK if f.refused])


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request, tmp_path_factory):
    """A family, its model and its bundle."""
    family = request.param
    model, inputs = make_model(family), family.inputs() if family.inputs else None
    folder = tmp_path_factory.mktemp(family.name) / "bundle"
    return family, model, moe_export.build(model, inputs, output=folder)


def test_layers_are_lowered_to_ops_and_routed_as_in_eager(exported):
    family, _, bundle = exported
    parity = bundle.parity()
    assert parity["passed"]
    assert parity["max_error"] <= RELATIVE_ERROR
    assert [layer["disagreeing"] for layer in parity["layers"]] == [0] * family.num_layers
    graph = ir.load(bundle.folder / "model.onnx").graph
    ops = {node.op_type for node in graph.all_nodes() if node.domain == "moe_export"}
    assert ops & {"GroupedExperts", "GroupedMatMul"}


def test_routers_in_words(exported):
    family, _, bundle = exported
    found = [
        layer["routing"] if layer["router"] == "TopKGating" else "own operators"
        for layer in bundle.manifest.layers
    ]
    assert tuple(dict.fromkeys(found)) == family.routers


def test_outputs_equal_eager_at_other_shapes_and_masks(exported):
    family, model, bundle = exported
    for inputs in [images()] if family.inputs else [text_inputs(model, *s) for s in SHAPES]:
        with torch.no_grad():
            expected = name_outputs(model(**inputs, **({} if family.inputs else NO_CACHE)))
        found = bundle.run({name: t.numpy() for name, t in inputs.items()})
        name = "feature_maps.0" if family.inputs else "logits"
        masks = [t for n, t in inputs.items() if n.endswith("attention_mask")]
        kept = masks[-1].numpy().astype(bool) if masks else slice(None)
        eager = expected[name].numpy()[kept]
        error = np.abs(found[name][kept] - eager).max() / np.abs(eager).max()
        assert error <= RELATIVE_ERROR, {n: tuple(t.shape) for n, t in inputs.items()}


def images():
    """An image of each data set, in another order than the build's."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(6, 3, 64, 48, generator=generator)
    return {"pixel_values": pixels, "dataset_index": torch.arange(6).flip(0)}


def text_inputs(model, batch, length, side, decoder_length):
    """Ids and masks that pad row r by r positions, a decoder's always on the right."""
    inputs = masked_ids("", batch, length, side)
    if model.config.is_encoder_decoder:
        inputs |= masked_ids("decoder_", batch, decoder_length, side and "right")
    return inputs


def masked_ids(prefix, batch, length, side):
    """``input_ids`` without the padding's, and ``attention_mask``."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    for row in range(1, batch if side else 0):
        lost = min(row, length - 1)
        if lost:
            mask[row, slice(None, lost) if side == "left" else slice(-lost, None)] = 0
    generator = torch.Generator().manual_seed(batch * 100 + length)
    ids = torch.randint(3, 128, (batch, length), generator=generator)
    return {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask}


@pytest.mark.parametrize("family", REFUSED)
def test_refuses_with_the_reason_and_leaves_nothing_behind(family, tmp_path):
    with pytest.raises(UnsupportedModelError) as refusal:
        moe_export.build(make_model(family), output=tmp_path / "bundle")
    assert family.refused in str(refusal.value)
    assert list(tmp_path.iterdir()) == []
