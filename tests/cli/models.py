"""Models that tests of the command line name as MODULE:CALLABLE."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.catalog import CLASSIC, STYLES
from tests.zoo.classic.mixtral import Mixtral
from tests.zoo.layer import H, settle
from tests.zoo.refused import Base, DropoutAlways, OnlyTwoRun

_ZOO = {layer.name: layer for layer in CLASSIC + STYLES}


def some_refused():
    """Layers 1 and 3 cannot be lowered."""
    return settle(nn.Sequential(Base(), DropoutAlways(), Base(), OnlyTwoRun())), torch.randn(5, H)


class Untraceable(nn.Module):
    """Its layer is recognized; what stands around it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.layer = Base()

    def forward(self, x):
        y = self.layer(x)
        return y if float(y.sum()) > 0 else -y


def untraceable():
    return settle(Untraceable()), torch.randn(5, H)


def two_layers():
    """About a megabyte of weights."""
    return settle(nn.Sequential(Mixtral(64, 96), Mixtral(64, 96))), torch.randn(2, 5, 64)


def __getattr__(name):
    """Every layer of the zoo, by its name."""
    if name not in _ZOO:
        raise AttributeError(name)
    return lambda: (_ZOO[name].make(), _ZOO[name].inputs())
