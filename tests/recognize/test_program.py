"""Operators aligned over traces at several shapes, run again at another."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.program import Alignment, Environment, Program, constants
from moe_export.recognize.trace import trace_layer
from tests.recognize.common import layer_call

POINTS = [(2, 7), (3, 8), (5, 11), (3, 16)]
WIDTH = 4


class Layer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.linear = nn.Linear(WIDTH, 6)
        self.table = nn.Parameter(torch.randn(5, WIDTH))

    def forward(self, x):
        return self.function(self, x)


def tokens(*point, seed=0):
    return torch.randn(*point, WIDTH, generator=torch.Generator().manual_seed(seed))


def align(function, points=POINTS):
    torch.manual_seed(0)
    layer = Layer(function).eval()
    call = layer_call(layer, tokens(*points[0]))
    traces = [trace_layer(call, [tokens(*point, seed=n)]) for n, point in enumerate(points)]
    alignment = Alignment(traces, points)
    return layer, alignment, alignment.identity(traces[0].results[0].value)


def replay(layer, alignment, target, x):
    program = Program(alignment, [target])
    environment = Environment({("leaf", "input", 0): x}, tuple(x.shape[:-1]))
    with torch.no_grad():
        program.run(layer, environment)
        return program.read(target, layer, environment)


def capacity_mask(self, x):
    flat = x.reshape(-1, WIDTH)
    scores = self.linear(flat).softmax(-1)
    best = scores.topk(max(1, len(flat) // 4), dim=0)
    return torch.zeros_like(scores).scatter(0, best.indices, best.values)


REPLAYED = {
    "linear": lambda self, x: self.linear(x),
    "flattened": lambda self, x: self.linear(x.view(-1, WIDTH)).view(*x.shape[:2], 6),
    "softmax top-k": lambda self, x: self.linear(x).softmax(-1).topk(2).values,
    "mean of tokens": lambda self, x: x - x.sum((0, 1)) / (x.shape[0] * x.shape[1]),
    "positions": lambda self, x: x * torch.arange(x.shape[1])[None, :, None],
    "table": lambda self, x: self.table[x.argmax(-1) % 5] + x,
    "own constant": lambda self, x: x * torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "full": lambda self, x: torch.full((x.shape[1], 2), 3.0).sum() * x,
    "one hot": lambda self, x: F.one_hot(self.linear(x).argmax(-1), 6).cumsum(1).float(),
    "last token": lambda self, x: x[:, x.shape[1] - 1],
    "norm": lambda self, x: F.layer_norm(x, (WIDTH,)).transpose(0, 1).reshape(-1, WIDTH),
    "split": lambda self, x: torch.cat(x.split(2, dim=-1)[::-1], dim=-1),
    "loop over columns": lambda self, x: sum(x[..., n] * n for n in range(WIDTH)),
}


@pytest.mark.parametrize("name", REPLAYED)
def test_replay_equals_eager_at_another_shape(name):
    layer, alignment, target = align(REPLAYED[name])
    for point in ((4, 9), (1, 1), (7, 3)):
        x = tokens(*point, seed=9)
        with torch.no_grad():
            expected = layer(x)
        torch.testing.assert_close(replay(layer, alignment, target, x), expected)


def test_replay_of_a_share_of_the_tokens():
    points = [*POINTS, (2, 2), (2, 3), (3, 4), (4, 5), (4, 16), (3, 33), (2, 64)]
    layer, alignment, target = align(capacity_mask, points)
    x = tokens(4, 25, seed=9)
    with torch.no_grad():
        expected = layer(x)
    torch.testing.assert_close(replay(layer, alignment, target, x), expected)


def test_products_with_parameters_become_linear_layers():
    layer, alignment, target = align(REPLAYED["flattened"])
    program = Program(alignment, [target])
    program.join_linear_layers([target])
    assert F.linear in [node.func for node in program.nodes]
    assert not any("aten.t." in str(node.func) for node in program.nodes)
    x = tokens(4, 9, seed=9)
    environment = Environment({("leaf", "input", 0): x}, (4, 9))
    with torch.no_grad():
        program.run(layer, environment)
        torch.testing.assert_close(environment.tensors[target], layer(x))


def only_some_shapes(self, x):
    return x.sin() * 2 if x.shape[1] > 10 else x.cos() * 2


def by_values(self, x):
    return x[x > 0].sum() * x


REFUSED = {
    "operators at some shapes only": (
        only_some_shapes,
        "runs at some shapes .* only|depends on values",
    ),
    "constant made from the shape": (
        lambda self, x: x * torch.tensor(float(x.shape[1])),
        "makes a constant from its input's shape or values",
    ),
    "constant made from values": (
        lambda self, x: x * torch.tensor(x[0, 0].tolist()),
        "constant from its input's shape or values|number .* no function of the shape",
    ),
    "number from values": (
        lambda self, x: x * float(x.max()),
        "has the number .* no function of the shape",
    ),
    "root of a size": (
        lambda self, x: x / x.shape[1] ** 0.5,
        r"has the number 2.64.* at shapes \(2, 7\), .*no function of the shape",
    ),
    "selection": (by_values, "works on a selection whose size depends on values"),
    "nonzero": (
        lambda self, x: x + x[:, :, 0].nonzero().sum(),
        "selection whose size depends on values",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_cannot_be_run_again(name):
    function, reason = REFUSED[name]
    _, alignment, target = align(function)
    with pytest.raises(UnsupportedModelError, match=reason):
        Program(alignment, [target])


def test_only_what_the_target_needs_counts():
    layer, alignment, target = align(lambda self, x: (x + 1, x[x > 0].sum())[0])
    x = tokens(4, 9)
    torch.testing.assert_close(replay(layer, alignment, target, x), x + 1)


def test_equal_operators_correspond_in_order():
    _, alignment, _ = align(lambda self, x: (x * 2) + (x * 3) + (x * 2))
    ops = alignment.traces[0].ops
    identities = [alignment.identity(op.outputs[0]) for op in ops]
    assert len(set(identities)) == len(ops)
    for n, trace in enumerate(alignment.traces):
        assert [alignment.find(identity, n) for identity in identities] == [
            op.outputs[0] for op in trace.ops
        ]


def test_value_that_depends_on_values_in_one_trace_is_dependent():
    def sometimes(self, x):
        rows = x.flatten(0, 1)
        return rows[rows[:, 0] > -9.0] if x.shape[1] > 10 else rows * 1

    _, alignment, target = align(sometimes)
    assert alignment.is_data_dependent(target)


def test_cut_makes_a_value_a_leaf():
    layer, alignment, target = align(lambda self, x: x[x > 0].sum() * x + 1)
    cuts = [trace.ops[-1].args[0].value for trace in alignment.traces]
    cut = alignment.cut(cuts)
    target = cut.identity(alignment.traces[0].results[0].value)
    program = Program(cut, [target], [("leaf", "experts", 0)])
    environment = Environment({("leaf", "experts", 0): torch.ones(4, 9, WIDTH)}, (4, 9))
    program.run(layer, environment)
    assert torch.equal(environment.tensors[target], torch.full((4, 9, WIDTH), 2.0))


def test_constants_are_named_for_the_bound_layer():
    _, alignment, target = align(REPLAYED["own constant"])
    ((name, tensor),) = constants(alignment, [Program(alignment, [target])]).items()
    assert name.startswith("moe_export_constant_")
    assert tensor.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_replay_is_exported_with_symbolic_sizes():
    layer, alignment, target = align(REPLAYED["flattened"])
    program = Program(alignment, [target])

    class Replayed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            environment = Environment({("leaf", "input", 0): x}, tuple(x.shape[:-1]))
            program.run(self.layer, environment)
            return environment.tensors[target]

    axes = ({0: torch.export.Dim("b"), 1: torch.export.Dim("s")},)
    exported = torch.export.export(Replayed(), (tokens(3, 8),), dynamic_shapes=axes).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(tokens(6, 17)), layer(tokens(6, 17)))
