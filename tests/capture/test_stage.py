"""The lowered model is compared in eager before it is traced."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import moe_export
from moe_export.errors import UnsupportedModelError
from tests.recognize.layers import GateModuleStyle, H


class OtherUse(nn.Module):
    """Reads the layer's parts beside calling it: replacing the layer's result is not enough."""

    def __init__(self):
        super().__init__()
        self.moe = GateModuleStyle()
        self.seen = []
        self.moe.experts[0].register_forward_hook(lambda *_: self.seen.append(1))

    def forward(self, x):
        self.seen.clear()
        return self.moe(x) + float(len(self.seen) > 0)


def test_difference_in_eager_is_refused_before_tracing(tmp_path):
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match=r"still in eager PyTorch.*output differs by"):
        moe_export.build(OtherUse(), torch.randn(32, H), output=tmp_path / "bundle")


class Bypassed(nn.Module):
    """Computes with the layer's parts without calling it once it is traced."""

    def __init__(self):
        super().__init__()
        self.moe = GateModuleStyle()

    def forward(self, x):
        if torch.compiler.is_exporting():
            return self.moe.gate(x)[0].sum() + x
        return self.moe(x)


def test_layer_that_is_not_called_while_tracing_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"moe: .*without calling the module"):
        moe_export.build(Bypassed(), torch.randn(32, H), output=tmp_path / "bundle")


def test_model_is_left_as_it_was(tmp_path):
    model = nn.Sequential(nn.Linear(H, H), GateModuleStyle()).train()
    names = set(model.state_dict())
    moe_export.build(model, torch.randn(9, H), output=tmp_path / "bundle", verify=False)
    assert model.training
    assert set(model.state_dict()) == names
    assert "forward" not in model[1].__dict__
