"""Recognize a layer in a test, and compare its bound form with eager on other inputs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from moe_export.errors import UnsupportedModelError
from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress
from moe_export.recognize.block import bound
from moe_export.recognize.layer_call import find_layer_call
from moe_export.recognize.recorder import recording
from moe_export.recognize.stage import recognize
from moe_export.sources.source import load_module
from moe_export.tolerances import LAYER_TOLERANCE, relative_error
from tests.recognize.layers import H

# Crowds and large values add up longer sums than the proof's probes.
TOLERANCE = 3 * LAYER_TOLERANCE


class Wrapped(nn.Module):
    """A model with the layer one level down, behind another one."""

    def __init__(self, layer):
        super().__init__()
        self.embed = nn.Linear(H, H)
        self.block = nn.ModuleDict({"moe": layer})

    def forward(self, x):
        return self.block["moe"](self.embed(x))


class Around(nn.Module):
    """A model that is its layer."""

    def __init__(self, layer):
        super().__init__()
        self.moe = layer

    def forward(self, x):
        return self.moe(x)


def find_blocks(model, example):
    """Blocks of a model on example inputs: a tensor's shape, a tensor, or a tuple of tensors."""
    if isinstance(example, tuple) and all(isinstance(size, int) for size in example):
        torch.manual_seed(1)
        example = torch.randn(example)
    loaded = load_module(model, example, BuildPlan(output=Path("unused")), source="test")
    return recognize(loaded, SilentProgress()).blocks


def layer_call(layer, *args, **kwargs):
    """How a layer is called in one eager run in which it is the whole model."""
    with recording(layer.eval()) as record:
        layer(*args, **kwargs)
    return find_layer_call("moe", layer, record)


def tensors_of(result):
    """Every tensor of a result, in order."""
    leaves = torch.utils._pytree.tree_leaves(result)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def largest_error(blocks, model, *inputs):
    """How far the model with its blocks bound is from eager, relative to the largest value."""
    model.eval()
    with torch.no_grad():
        with bound(blocks):  # first, so that eager leaves nothing behind for it
            found = tensors_of(model(*(x.clone() for x in inputs)))
        expected = tensors_of(model(*(x.clone() for x in inputs)))
    assert len(found) == len(expected)
    pairs = zip(found, expected, strict=True)
    return max(relative_error(f.numpy(), e.numpy()) for f, e in pairs)


def assert_right_or_refused(model, example, cases):
    """A model is refused, or its bound form agrees with eager (or raises) on every case.

    Returns whether it was recognized.
    """
    try:
        blocks = find_blocks(model.eval(), example)
    except UnsupportedModelError:
        return False
    for case in cases:
        inputs = case if isinstance(case, tuple) else (case,)
        try:
            error = largest_error(blocks, model, *inputs)
        except (RuntimeError, UnsupportedModelError):
            continue
        shapes = [list(x.shape) for x in inputs]
        assert error <= TOLERANCE, f"recognized, and off by {error:.1e} on {shapes}"
    return True


def rows(*shape, seed=0, scale=1.0):
    """Random tokens."""
    return scale * torch.randn(*shape, H, generator=torch.Generator().manual_seed(seed))


def crowd(count, *, seed=0):
    """Tokens that are nearly one row, which all go to the same experts."""
    generator = torch.Generator().manual_seed(seed)
    row = torch.randn(H, generator=generator)
    return row + 1e-3 * torch.randn(count, H, generator=generator)


def fresh_inputs():
    """Token counts, magnitudes and crowds besides those that recognition tries."""
    counts = [rows(n, seed=n) for n in (1, 2, 7, 50, 1500)]
    magnitudes = [rows(50, seed=5, scale=30.0), rows(50, seed=6, scale=0.01), torch.zeros(7, H)]
    padded = torch.cat([rows(5, seed=8), torch.zeros(3, H)])
    return [*counts, *magnitudes, padded, *(crowd(700, seed=s) for s in range(6)), crowd(1500)]


def fresh_batches():
    """The same as batches of sequences."""
    shapes = [(1, 1), (7, 1), (1, 9), (16, 40), (40, 2), (3, 500)]
    return [rows(*shape) for shape in shapes] + [x[None] for x in fresh_inputs()]
