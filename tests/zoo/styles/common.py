"""Experts for layers whose point lies elsewhere."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.layer import H

WIDTH = 24


class Experts(nn.ModuleList):
    """Two-linear experts that know how to combine themselves."""

    def __init__(self, number):
        super().__init__(
            nn.Sequential(nn.Linear(H, WIDTH), nn.ReLU(), nn.Linear(WIDTH, H))
            for _ in range(number)
        )

    def combine(self, x, weights, ids):
        y = torch.zeros_like(x)
        for e, expert in enumerate(self):
            token, slot = torch.where(ids == e)
            y = y.index_add(0, token, weights[token, slot].unsqueeze(1) * expert(x[token]))
        return y
