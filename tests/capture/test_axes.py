"""Dynamic axes: defaults, what is asked for, and what the model fixes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import moe_export
from moe_export.capture.axes import default_axes
from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.plan import AxisSpec
from moe_export.progress import SilentProgress
from tests.recognize.layers import GateModuleStyle, H, MixtralStyle


@pytest.mark.parametrize(
    ("tensor", "axes"),
    [
        (torch.zeros(2, 3), [0]),
        (torch.zeros(2, 3, dtype=torch.int64), [0, 1]),
        (torch.zeros(2, 3, 4), [0, 1]),
        (torch.zeros(2), [0]),
        (torch.zeros(()), []),
    ],
)
def test_default_axes(tensor, axes):
    assert default_axes("x", tensor) == [("x", axis) for axis in axes]


class FixedLength(nn.Module):
    """Learned positions for exactly five tokens."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(5, H))
        self.moe = MixtralStyle()

    def forward(self, x):
        return self.moe(x + self.position)


def build(model, example, folder, **options):
    progress = SilentProgress()
    bundle = moe_export.build(model, example, output=folder, progress=progress, **options)
    return bundle, progress.remarks


def test_fixed_axis_becomes_static_and_names_the_guard(tmp_path):
    bundle, remarks = build(FixedLength(), torch.randn(2, 5, H), tmp_path / "bundle")
    assert list(bundle.manifest.inputs[0]["shape"]) == ["batch", 5, H]
    (remark,) = [r for r in remarks if "fixed" in r]
    assert remark.startswith("x axis 1 is fixed at 5 by the model: Eq(")
    assert "test_axes.py" in remark


def test_axis_asked_for_and_fixed_is_an_error(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"(?s)cannot be traced.*5"):
        build(
            FixedLength(),
            torch.randn(2, 5, H),
            tmp_path / "bundle",
            dynamic=(AxisSpec("x", 1),),
        )
    assert not (tmp_path / "bundle").exists()


def test_range_and_static_axis(tmp_path):
    bundle, _ = build(
        MixtralStyle(),
        torch.randn(2, 5, H),
        tmp_path / "bundle",
        dynamic=(AxisSpec("hidden_states", 1, 2, 16),),
        static=(AxisSpec("hidden_states", 0),),
    )
    assert list(bundle.manifest.inputs[0]["shape"]) == [2, "sequence", H]
    assert bundle.verified


def test_unknown_axis_lists_the_inputs(tmp_path):
    with pytest.raises(UsageError, match=r"y\.0: the inputs are x \[9, 24\]"):
        build(
            GateModuleStyle(),
            torch.randn(9, H),
            tmp_path / "bundle",
            dynamic=(AxisSpec("y", 0),),
        )


class DataDependent(nn.Module):
    """Python control flow on a value, outside the MoE layer."""

    def __init__(self):
        super().__init__()
        self.moe = GateModuleStyle()

    def forward(self, x):
        return self.moe(x) if x.sum() > 0 else -self.moe(x)


def test_data_dependent_control_flow_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="cannot be traced"):
        build(DataDependent(), torch.randn(9, H), tmp_path / "bundle")
    assert not list(Path(tmp_path).iterdir())


@pytest.mark.parametrize("shape", [(1, 5, H), (1, 1, H), (3, 1, H)])
def test_example_of_one_does_not_fix_the_axis(shape, tmp_path):
    bundle, remarks = build(MixtralStyle(), torch.randn(shape), tmp_path / "bundle")
    assert list(bundle.manifest.inputs[0]["shape"]) == ["batch", "sequence", H]
    assert bundle.verified
    assert not any("fixed" in remark for remark in remarks)


class OneRow(nn.Module):
    """Takes a batch of one only."""

    def __init__(self):
        super().__init__()
        self.moe = GateModuleStyle()

    def forward(self, x):
        return self.moe(x.reshape(1, H))


def test_model_that_wants_a_batch_of_one_keeps_it(tmp_path):
    bundle, _ = build(OneRow(), torch.randn(1, H), tmp_path / "bundle", verify=False)
    assert list(bundle.manifest.inputs[0]["shape"]) == [1, H]
