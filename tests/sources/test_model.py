"""Whatever ``forward`` returns is named and can be exported."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_export.sources.model import name_outputs


@dataclass
class Statistics:
    counts: Tensor
    label: str = "layer 1"


@dataclass
class Output:
    hidden: Tensor
    statistics: Statistics
    pair: tuple[Tensor, Tensor]


class ReturnsRecords(nn.Module):
    def forward(self, x):
        return Output(x + 1, Statistics(x.sum(0)), (x, 2 * x))


def test_dataclasses_inside_dataclasses_are_named_by_field():
    found = name_outputs(ReturnsRecords()(torch.ones(3, 2)))
    assert list(found) == ["hidden", "statistics.counts", "pair.0", "pair.1"]
    assert torch.equal(found["statistics.counts"], torch.full((2,), 3.0))


def test_a_model_that_returns_dataclasses_can_be_traced():
    x = torch.ones(3, 2)
    model = ReturnsRecords()
    name_outputs(model(x))
    program = torch.export.export(model, (x,))
    assert torch.equal(program.module()(x).pair[1], 2 * x)


def test_tensors_tuples_and_dicts():
    x = torch.ones(2)
    assert list(name_outputs(x)) == ["output"]
    assert list(name_outputs((x, None, [x, 3]))) == ["output_0", "output_2_0"]
    assert list(name_outputs({"a": x, "b": {"c": x}})) == ["a", "b.c"]
