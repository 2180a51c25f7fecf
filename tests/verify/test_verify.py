"""A wrong export must fail, name the layer, and leave a bundle that says so."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import onnx_ir as ir
import pytest
import torch
from rich.console import Console
from torch import nn

import moe_export
from moe_export import pipeline
from moe_export.cli.report import draw_parity, draw_verdict
from moe_export.errors import ParityError
from moe_export.optimize.stage import optimize
from moe_export.package.bundle import UnverifiedBundleWarning
from moe_export.progress import SilentProgress
from tests.recognize.layers import E, GateModuleStyle, H


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(GateModuleStyle() for _ in range(2))
        self.head = nn.Linear(H, 3)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def nodes(model, op_type):
    return [node for node in model.graph if node.op_type == op_type]


def roll_experts(model):
    """The second layer's experts are one off."""
    value = nodes(model, "GroupedExperts")[1].inputs[3]
    value.const_value = ir.tensor(np.roll(value.const_value.numpy(), 1, axis=0), name=value.name)


def perturb_bias(model):
    """One number of one expert is off by a thousandth of its size."""
    value = nodes(model, "GroupedExperts")[0].inputs[5]
    bias = value.const_value.numpy().copy()
    bias[E - 1] *= 1.01
    value.const_value = ir.tensor(bias, name=value.name)


def renormalize(model):
    """The router renormalizes although eager's does not."""
    nodes(model, "TopKGating")[1].attributes["renormalize"] = ir.AttrInt64("renormalize", 1)


def negate_router(model):
    """The router chooses the worst experts."""
    value = nodes(model, "Gemm")[0].inputs[1]
    value.const_value = ir.tensor(-value.const_value.numpy(), name=value.name)


def perturb_head(model):
    """What is wrong is outside the MoE layers."""
    value = nodes(model, "Gemm")[-1].inputs[1]
    value.const_value = ir.tensor(value.const_value.numpy() * 1.001, name=value.name)


def poison_head(model):
    """The model gives NaN, whose error no number of JSON can say."""
    value = nodes(model, "Gemm")[-1].inputs[1]
    value.const_value = ir.tensor(value.const_value.numpy() * np.nan, name=value.name)


FAULTS = {
    roll_experts: ("first diverging layer: layers.1", "the experts' sum differs"),
    perturb_bias: ("first diverging layer: layers.0", "experts alone, every expert"),
    renormalize: ("first diverging layer: layers.1", "expert weights differ"),
    negate_router: ("first diverging layer: layers.0", "tokens go to other experts"),
    perturb_head: ("every MoE layer agrees", "output differs by"),
    poison_head: ("every MoE layer agrees", "output differs by inf"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_wrong_export_fails_and_names_the_layer(fault, monkeypatch, tmp_path):
    def faulty(*args):
        optimized = optimize(*args)
        fault(optimized.model)
        return optimized

    monkeypatch.setattr(pipeline, "optimize", faulty)
    torch.manual_seed(0)
    where, what = FAULTS[fault]
    with pytest.raises(ParityError, match=f"(?s){where}.*{what}"):
        moe_export.build(Model(), torch.randn(5, H), output=tmp_path / "bundle")
    with pytest.warns(UnverifiedBundleWarning, match="failed its comparison"):
        bundle = moe_export.load(tmp_path / "bundle")
    assert bundle.manifest.parity["status"] == "failed"
    parity = bundle.parity()
    assert not parity["passed"]
    draw_parity(Console(file=io.StringIO()), parity)
    draw_verdict(Console(file=io.StringIO()), dataclasses.asdict(bundle.manifest))


def test_skipped_parity_is_recorded(tmp_path):
    moe_export.build(Model(), torch.randn(5, H), output=tmp_path / "bundle", verify=False)
    with pytest.warns(UnverifiedBundleWarning, match="never compared"):
        assert not moe_export.load(tmp_path / "bundle").verified


def test_dead_expert_is_remarked(tmp_path):
    """A bias that no input overcomes: the expert is proved alone, and the user is told."""
    torch.manual_seed(0)
    model = Model()
    router = model.layers[0].gate.weight
    router.bias = nn.Parameter(torch.zeros(E).index_fill(0, torch.tensor([4]), -1e9))
    progress = SilentProgress()
    bundle = moe_export.build(
        model, torch.randn(5, H), output=tmp_path / "bundle", progress=progress
    )
    assert bundle.verified
    layer = bundle.parity()["layers"][0]
    assert (layer["experts_reached"], layer["experts_run"]) == (E - 1, E)
    assert any("reach 5 of 6 experts" in remark for remark in progress.remarks)


class Coupled(Model):
    """One sample changes another's result."""

    def forward(self, x):
        return super().forward(x) + x.mean(dim=0).sum()


@pytest.mark.parametrize(("model", "coupled"), [(Model, False), (Coupled, True)])
def test_batch_coupling_is_measured(model, coupled, tmp_path):
    torch.manual_seed(0)
    bundle = moe_export.build(model(), torch.randn(5, H), output=tmp_path / "bundle")
    assert bundle.manifest.batch_coupled is coupled


def test_miscounted_experts_fail():
    """Evidence beside the routing: how many rows eager gave each expert module."""
    from moe_export.runners.eager import LayerTrace
    from moe_export.verify.judge import _is_miscounted

    trace = LayerTrace(np.array([[0, 1], [1, 2]]), np.ones((2, 2), np.float32))
    assert not _is_miscounted(dataclasses.replace(trace, rows_per_expert=(1, 2, 1)), 3)
    assert _is_miscounted(dataclasses.replace(trace, rows_per_expert=(2, 2, 0)), 3)
