"""What the pipeline asks of the machine before it begins."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import nn

import moe_export
from moe_export.errors import MoeExportError, UnsupportedModelError
from moe_export.package import write

Usage = namedtuple("Usage", "free")
WEIGHT_BYTES = 4 * 1000 * 100


class NoExperts(nn.Module):
    """Refused once there is room: it has no MoE layer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1000, 100, bias=False)

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, WEIGHT_BYTES),
        ({"weights": "bf16", "verify": False}, WEIGHT_BYTES / 2),
        ({"weights": "int8"}, WEIGHT_BYTES * 5 / 4),
        ({"weights": "int4", "verify": False}, WEIGHT_BYTES / 8),
    ],
)
def test_room_is_asked_for_what_will_be_written(monkeypatch, tmp_path, options, needed):
    for free, error in ((needed - 1, MoeExportError), (needed, UnsupportedModelError)):
        monkeypatch.setattr(write.shutil, "disk_usage", lambda _folder, free=free: Usage(free))
        with pytest.raises(error, match=r"GB free|no Mixture-of-Experts") as caught:
            moe_export.build(NoExperts(), torch.randn(2, 1000), output=tmp_path / "b", **options)
        assert type(caught.value) is error
