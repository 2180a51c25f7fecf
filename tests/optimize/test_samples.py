"""Routers of ``[B, S, E]`` logits: samples and positions are told apart by the shape alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from tests.optimize.exported import Router, fuse, wrong_rows
from tests.optimize.fresh_logits import fresh_logits
from tests.optimize.spellings import BIAS, SCALES, renormalized

COUPLED = "tokens depend on each other"


def flat(ids, weights):
    return ids.flatten(0, 1), weights.flatten(0, 1)


def flattened_first(x):
    w, i = x.reshape(-1, x.shape[-1]).softmax(-1).topk(2)
    return i, renormalized(w)


def flattened_last(x):
    w, i = x.softmax(-1).topk(2)
    return flat(i, renormalized(w))


def flattened_between(x, bias):
    s = x.sigmoid()
    i = (s + bias).topk(2).indices.reshape(x.shape[0] * x.shape[1], 2)
    w = s.view(x.shape[0] * x.shape[1], -1).gather(1, i)
    return i, renormalized(w)


def scaled_per_expert(x, scales):
    w, i = flattened_last(x)[::-1]
    return i, w * scales[i]


def shifted_by_one_position(x):
    w, i = x.softmax(-1).topk(2)
    return flat(i, F.pad(w, (0, 0, 1, 0))[:, :-1])


def softmax_over_samples(x):
    w, i = (x.softmax(-1) * x.softmax(0)).topk(2)
    return flat(i, w)


def softmax_over_positions(x):
    w, i = (x.softmax(-1) * x.softmax(1)).topk(2)
    return flat(i, w)


def capacity_per_sample(x):
    w, i = x.softmax(-1).topk(1)
    chosen = F.one_hot(i[..., 0], 8)
    keep = ((chosen.cumsum(1) * chosen).sum(-1) <= 2).unsqueeze(-1)
    return flat(torch.where(keep, i, 8), w * keep)


WHOLE = {
    flattened_first: "softmax top-2, renormalized",
    flattened_last: "softmax top-2, renormalized",
    flattened_between: "sigmoid + bias top-2, renormalized",
    scaled_per_expert: "softmax top-2, renormalized",
}
OTHERS = [
    shifted_by_one_position, softmax_over_samples, softmax_over_positions, capacity_per_sample,
]  # fmt: skip
_STORED = {flattened_between: {"bias": BIAS}, scaled_per_expert: {"scales": SCALES}}
ROUTERS = {
    route.__name__: Router(route, stored=_STORED.get(route), samples=4)
    for route in [*WHOLE, *OTHERS]
}


@pytest.fixture(scope="module")
def fused():
    return fuse(ROUTERS)


@pytest.mark.parametrize("route", WHOLE, ids=lambda route: route.__name__)
def test_router_is_fused(fused, route):
    assert fused.layers[route.__name__].routing == WHOLE[route]


@pytest.mark.parametrize("name", ROUTERS)
def test_routes_as_before(fused, name, tmp_path):
    assert not np.any(wrong_rows(fused, name, ROUTERS[name], fresh_logits(8), tmp_path))


@pytest.mark.parametrize("name", ["softmax_over_samples", "softmax_over_positions"])
def test_coupling_along_either_axis_shows(fused, name):
    """Only the choice behind the coupled scores is fused, from those scores on."""
    layer = fused.layers[name]
    assert layer.routing in (COUPLED, "top-2")
