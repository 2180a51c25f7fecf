"""Every model family through the public API: exported with parity, or refused with its reason."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import moe_export
from moe_export.errors import UnsupportedModelError
from tests.families.all_families import FAMILIES
from tests.families.catalogue import Family, make_model
from tests.families.sweep import RELATIVE_ERROR, sweep_errors
from tests.families.without_hook import WITHOUT_HOOK

pytest.importorskip("transformers")


def as_parameters(families: list[Family]) -> list[Any]:
    """One test parameter per family; those outside the default run are marked slow."""
    return [
        pytest.param(f, id=f.name, marks=() if f.in_ci else (pytest.mark.slow,)) for f in families
    ]


EXPORTED = as_parameters([f for f in FAMILIES if not f.refused])
REFUSED = as_parameters([f for f in FAMILIES if f.refused])


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request, tmp_path_factory):
    """A family, its model and its bundle."""
    family = request.param
    model, inputs = make_model(family), family.inputs(0) if family.inputs else None
    folder = tmp_path_factory.mktemp(family.name) / "bundle"
    return family, model, moe_export.build(model, inputs, output=folder)


def test_every_layer_is_lowered_and_every_expert_compared(exported):
    family, _, bundle = exported
    parity = bundle.parity()
    assert parity["passed"]
    assert parity["max_error"] <= RELATIVE_ERROR
    assert len(parity["layers"]) == family.num_layers
    assert [layer["disagreeing"] for layer in parity["layers"]] == [0] * family.num_layers
    # None: eager's code mixes the experts with the router, so that none can be asked for alone.
    for layer in parity["layers"]:
        alone = layer["experts_run"]
        assert alone == layer["num_experts"] or (alone is None and family in WITHOUT_HOOK)
    graph = ir.load(bundle.folder / "model.onnx").graph
    ops = [node.op_type for node in graph.all_nodes() if node.domain == "moe_export"]
    ends = sum(op in ("GroupedExperts", "ExpertCombine") for op in ops)
    assert ends == family.num_layers


def test_routers_in_words(exported):
    family, _, bundle = exported
    found = [
        layer["routing"] if layer["router"] == "TopKGating" else "own operators"
        for layer in bundle.manifest.layers
    ]
    assert tuple(dict.fromkeys(found)) == family.routers


def test_outputs_equal_eager_at_other_shapes_and_masks(exported):
    family, model, bundle = exported
    errors = sweep_errors(family, model, bundle)
    assert not {case: error for case, error in errors.items() if not error <= RELATIVE_ERROR}


@pytest.mark.parametrize("family", REFUSED)
def test_refuses_with_the_reason_and_leaves_nothing_behind(family, tmp_path):
    with pytest.raises(UnsupportedModelError) as refusal:
        moe_export.build(make_model(family), output=tmp_path / "bundle")
    assert family.refused in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_record_and_readme_agree_with_the_catalogue():
    text = resources.files("moe_export").joinpath("families.json").read_text()
    rows = json.loads(text)["families"]
    expected = {f.name: "refused" if f.refused else "exported" for f in FAMILIES}
    assert {row["family"]: row["status"] for row in rows} == expected
    routers = {row["family"]: row["routers"] for row in rows if row["status"] == "exported"}
    assert routers == {f.name: list(f.routers) for f in FAMILIES if not f.refused}
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    assert [row["family"] for row in rows if f"| {row['family']} |" not in readme] == []


@pytest.mark.slow
@pytest.mark.parametrize("family", EXPORTED)
def test_a_graph_for_gpus_in_bfloat16_agrees_with_eager(family, tmp_path):
    model, inputs = make_model(family), family.inputs(0) if family.inputs else None
    bundle = moe_export.build(model, inputs, output=tmp_path / "b", target="cuda", dtype="bf16")
    assert bundle.manifest.parity["status"] == "graph"
    assert bundle.manifest.parity["disagreeing_tokens"] == 0
