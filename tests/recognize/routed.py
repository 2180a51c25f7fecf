"""A layer to vary in tests: a linear gate, softmax, top-2, a loop over its experts."""

from __future__ import annotations

import torch
from torch import nn

from tests.recognize.common import Around, assert_right_or_refused, fresh_inputs
from tests.recognize.layers import E, H, relu_expert


class Routed(nn.Module):
    def __init__(self, expert=relu_expert):
        super().__init__()
        self.gate = nn.Linear(H, E)
        self.experts = nn.ModuleList(expert() for _ in range(E))

    def scores(self, x):
        return self.gate(x).softmax(-1)

    def route(self, x):
        return self.scores(x).topk(2)

    def combine(self, x, weights, ids):
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = (ids == e).nonzero(as_tuple=True)
            if len(token):
                out.index_add_(0, token, weights[token, slot, None] * expert(x[token]))
        return out

    def dense(self, x, weights):
        return sum(weights[:, e, None] * expert(x) for e, expert in enumerate(self.experts))

    def forward(self, x):
        return self.combine(x, *self.route(x))


class Stacked(nn.Module):
    """The same with stacked parameters."""

    def __init__(self, inner=40, columns=40):
        super().__init__()
        self.gate = nn.Linear(H, E)
        self.up = nn.Parameter(torch.randn(E, H, columns) / 5)
        self.down = nn.Parameter(torch.randn(E, inner, H) / 6)

    def inner(self, h):
        return h.relu()

    def forward(self, x):
        weights, ids = self.gate(x).softmax(-1).topk(2)
        h = self.inner(torch.einsum("th,tkhi->tki", x, self.up[ids]))
        return torch.einsum("tki,tkih,tk->th", h, self.down[ids], weights)


class Cases(dict):
    """Layers by name, each with its example and the inputs on which it may not be wrong."""

    def add(self, example=(9, H), inputs=fresh_inputs):
        def keep(model):
            self[model.__name__] = (model, example, inputs)
            return model

        return keep

    def check(self, name):
        model, example, inputs = self[name]
        torch.manual_seed(0)
        made = model()
        model = made if isinstance(made, Around) else Around(made)
        assert_right_or_refused(model, example, inputs())
