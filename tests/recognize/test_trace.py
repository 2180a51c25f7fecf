"""The functional record of one eager run of a layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.program import Alignment, Environment, Program
from moe_export.recognize.trace import Ref, trace_layer
from tests.recognize.common import layer_call, rows
from tests.recognize.routed import Routed


class Layer(nn.Module):
    """Any function of ``self`` and ``x`` as a layer."""

    def __init__(self, function, **buffers):
        super().__init__()
        self.function = function
        self.linear = nn.Linear(4, 4)
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    def forward(self, x):
        return self.function(self, x)


def example(seed=0):
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))


def trace_of(layer):
    call = layer_call(layer, example())
    return trace_layer(call, [example(1)])


def in_place(self, x):
    y = torch.zeros_like(x)
    y += 2
    y[1:3] += x[1:3]
    y.view(-1)[::2].mul_(3)
    return y.t().relu_().t()


def index_put_loop(self, x):
    y = torch.zeros(5, 4)
    for column in range(4):
        y[:, column] = x[:, 3 - column] * column
    return y


def masked_writes(self, x):
    y = x.clone()
    y[y < 0] = 0.5
    y[x[:, 0] > 0] += 1
    return y


def one_hot(self, x):
    ids = x.topk(2).indices
    return F.one_hot(ids, 4).float().sum(1) * x


def fills(self, x):
    y = torch.empty(5, 4).fill_(1.0)
    y.scatter_(1, x.argmax(1, keepdim=True), 7.0)
    return y.index_add_(0, torch.tensor([0, 1]), x[:2])


FUNCTIONS = [in_place, index_put_loop, masked_writes, one_hot, fills]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_record_holds_no_mutation_and_gives_the_result(function):
    layer = Layer(function)
    trace = trace_of(layer)
    assert not any(op.func._schema.is_mutable for op in trace.ops)
    (result,) = trace.results
    expected = layer(example(1))
    torch.testing.assert_close(trace.values[result.value].tensor, expected, rtol=0, atol=0)


@pytest.mark.parametrize("function", [in_place, index_put_loop, one_hot])
def test_record_runs_again_on_other_values(function):
    layer = Layer(function)
    alignment = Alignment([trace_of(layer)], [(5,)])
    target = alignment.identity(alignment.traces[0].results[0].value)
    program, x = Program(alignment, [target]), example(2)
    environment = Environment({("leaf", "input", 0): x}, (5,))
    program.run(layer, environment)
    torch.testing.assert_close(environment.tensors[target], layer(x), rtol=0, atol=0)


def test_each_value_is_made_once_and_before_it_is_used():
    trace = trace_of(Layer(in_place))
    made = [value for op in trace.ops for value in op.outputs]
    assert len(made) == len(set(made))
    for op in trace.ops:
        used = [a.value for a in op.args if isinstance(a, Ref)]
        assert all(v < min(op.outputs, default=len(trace.values)) for v in used)


def test_leaves_are_told_apart():
    layer = Layer(lambda self, x: self.linear(x) + self.table + torch.ones(4), table=torch.ones(4))
    leaves = {value.leaf for value in trace_of(layer).values if value.op is None}
    assert {("input", 0), ("parameter", "linear.weight"), ("parameter", "table")} <= leaves


def test_shapes_that_depend_on_values_are_marked():
    trace = trace_of(Layer(lambda self, x: x[x[:, 0] > 0].sum() + x[torch.tensor([0, 1])].sum()))
    assert [op.by_value for op in trace.ops if op.func.name() == "aten::index.Tensor"] in (
        [True, False],
        [False],  # the mask may be made numbers first
    )
    assert any(op.by_value for op in trace.ops)


def test_lists_of_tensors_are_read():
    layer = Layer(lambda self, x: x * sum(x.argmax(1).tolist()) * len(x.tolist()[0]))
    trace = trace_of(layer)
    result = trace.values[trace.results[0].value].tensor
    torch.testing.assert_close(result, layer(example(1)), rtol=0, atol=0)
    assert trace_of(Layer(lambda self, x: x * x.sum().tolist())).results


@pytest.mark.parametrize("convert", [lambda x: x.numpy(), lambda x: x.__array__()])
def test_numpy_is_refused(convert):
    layer = Layer(lambda self, x: x * float(convert(x).max()))
    with pytest.raises(UnsupportedModelError, match=r"moe \(Layer\): .*NumPy"):
        trace_of(layer)


def test_own_errors_of_the_layer_are_refusals():
    def fails_later(self, x):
        if self.later:
            raise KeyError("no such thing")
        self.later = True
        return x

    layer = Layer(fails_later)
    layer.later = False
    call = layer_call(layer, example())
    with pytest.raises(UnsupportedModelError, match="cannot be recorded: KeyError: 'no such thing"):
        trace_layer(call, [example()])


def test_written_buffers_are_reported_and_left():
    def counts(self, x):
        self.load.add_(x.sum(0))
        self.calls += 1
        return x + self.load

    layer = Layer(counts, load=torch.zeros(4), calls=torch.zeros(()), other=torch.zeros(2))
    call = layer_call(layer, example())
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    trace = trace_layer(call, [example(1)])
    assert sorted(set(trace.written)) == ["calls", "load"]
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, before[name]), name
    result = trace.values[trace.results[0].value].tensor
    torch.testing.assert_close(result, example(1) + before["load"] + example(1).sum(0))


def test_attributes_and_buffers_that_are_set_come_back():
    def sets(self, x):
        self.loss = x.mean()
        self.table = self.table + 1
        self.linear.seen = len(x)
        return x + self.table

    layer = Layer(sets, table=torch.zeros(4))
    call = layer_call(layer, example())
    loss, table, seen = layer.loss, layer.table, layer.linear.seen
    trace_layer(call, [torch.randn(9, 4)])
    assert layer.loss is loss
    assert layer.table is table
    assert layer.linear.seen == seen == 5


def test_inputs_are_left_as_they_are():
    layer, x = Layer(lambda self, x: x.mul_(2)), example(1)
    call = layer_call(layer, example())
    trace_layer(call, [x])
    assert torch.equal(x, example(1))


def test_random_operators_are_noted():
    noisy = Layer(lambda self, x: x + torch.rand_like(x) + torch.randn(5, 1))
    assert len(trace_of(noisy).random) == 2
    assert trace_of(Layer(lambda self, x: F.dropout(x, 0.5, training=False))).random == []


def test_results_that_are_no_tensors_are_kept():
    trace = trace_of(Layer(lambda self, x: {"y": x + 1, "count": len(x), "none": None}))
    assert [isinstance(r, Ref) for r in trace.results].count(True) == 1
    assert {5, None} <= {r for r in trace.results if not isinstance(r, Ref)}


def test_selections_and_what_depends_on_values_are_recorded():
    trace = trace_layer(layer_call(Routed(), rows(9)), [rows(9, seed=1)])
    assert "aten::topk" in [op.func.name() for op in trace.ops]
    assert any(op.by_value for op in trace.ops)
