"""Whole models of real architectures through the public API."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

import moe_export
from tests.parity.families import FAMILIES, make_model

pytest.importorskip("transformers")

# The bar for two layers in float32, whatever the product's own tolerance is.
RELATIVE_ERROR = 2e-5


def masked_inputs(batch, length, side, vocabulary=128):
    """Ids with a mask that pads row r by r positions."""
    generator = torch.Generator().manual_seed(batch * 100 + length)
    mask = torch.ones(batch, length, dtype=torch.int64)
    for row in range(1, batch):
        lost = min(row, length - 1)
        if side and lost:
            mask[row, slice(None, lost) if side == "left" else slice(-lost, None)] = 0
    ids = torch.randint(vocabulary, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def exported(request, tmp_path_factory):
    """A family's model and its bundle."""
    model = make_model(request.param)
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    return model, moe_export.build(model, output=folder)


def test_build_verifies_it(exported):
    _, bundle = exported
    parity = bundle.parity()
    assert parity["passed"]
    assert parity["max_error"] <= RELATIVE_ERROR
    assert [layer["disagreeing"] for layer in parity["layers"]] == [0, 0]
    assert all(layer["experts_run"] == layer["num_experts"] for layer in parity["layers"])


ROUTERS = {
    "deepseek_v2": "softmax top-3, 2 of 4 groups by their best, others 0, x 1.5",
    "deepseek_v3": "sigmoid + bias top-3, 2 of 4 groups by their two best, renormalized, x 2.5",
    "gpt_oss": "top-2, softmax of the chosen",
    "granitemoe": "top-2, softmax of the chosen",
    "mixtral": "softmax top-2, renormalized",
    "olmoe": "softmax top-4",
    "qwen2_moe": "softmax top-2",
    "qwen3_moe": "softmax top-4, renormalized",
}


def test_router_is_fused(exported, request):
    family = request.node.callspec.params["exported"]
    layers = exported[1].manifest.layers
    assert [layer["routing"] for layer in layers] == [ROUTERS[family]] * 2
    assert all(layer["router"] == "TopKGating" for layer in layers)


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 13, 40])
def test_logits_equal_eager(exported, batch, length, side):
    """Shapes and masks that the build did not use, against the model's own eager path."""
    model, bundle = exported
    inputs = masked_inputs(batch, length, side)
    with torch.no_grad():
        expected = model(**inputs, use_cache=False).logits.numpy()
    found = bundle.run({name: t.numpy() for name, t in inputs.items()})["logits"]
    kept = inputs["attention_mask"].numpy().astype(bool)
    error = np.abs(found[kept] - expected[kept]).max() / np.abs(expected[kept]).max()
    assert error <= RELATIVE_ERROR


def test_record_and_readme_list_what_is_tested_here():
    text = resources.files("moe_export").joinpath("families.json").read_text()
    rows = json.loads(text)["families"]
    assert [row["family"] for row in rows] == sorted(FAMILIES)
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    assert all(f"| {row['family']} | {row['architecture']} |" in readme for row in rows)
