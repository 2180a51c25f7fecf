"""Models that are not what a bundle was built from."""

from __future__ import annotations

import torch
from torch import nn

from tests.cli.models import two_layers


def make_model():
    model, example = two_layers()
    return model.apply(draw), example


def draw(module):
    generator = torch.Generator().manual_seed(9)
    for parameter in module.parameters(recurse=False):
        parameter.data = torch.randn(parameter.shape, generator=generator)


class MoreInputs(nn.Module):
    def forward(self, input, extra):
        return input + extra


def with_more_inputs():
    return MoreInputs(), (torch.randn(2, 5, 64), torch.randn(2, 5, 64))
