"""Runs a layer in eager and flattens whatever it returns."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


def leaves(value, name="output"):
    """The tensors in a result, by name, in the order of its fields."""
    if isinstance(value, Tensor):
        return {name: value}
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        value = {f"{name}.{i}": v for i, v in enumerate(value)}
    if isinstance(value, dict):
        return {k: leaf for n, v in value.items() for k, leaf in leaves(v, n).items()}
    return {}


@torch.no_grad()
def run(model, inputs):
    """The tensors that ``model`` returns for a tuple of inputs, as a list."""
    return list(leaves(model(*inputs)).values())
