"""How layers are called and what they return: keywords, None, records, two ways."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.block import bound
from moe_export.recognize.layer_call import find_layer_call, flatten_result
from moe_export.recognize.recorder import recording
from tests.recognize.common import Around, find_blocks, largest_error, layer_call, rows
from tests.recognize.layers import H
from tests.recognize.routed import Routed


@dataclass
class Output:
    hidden: torch.Tensor
    logits: torch.Tensor
    note: str = "kept"


Pair = namedtuple("Pair", "hidden logits")


class Returning(Routed):
    """A routed layer that returns its sum and its logits in some record."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(super().forward(x), self.gate(x))


RECORDS = {
    "tuple": lambda y, z: (y, z),
    "list": lambda y, z: [z, y],
    "nested": lambda y, z: (y, {"aux": [z, None]}),
    "dict": lambda y, z: {"hidden": y, "logits": z},
    "namedtuple": Pair,
    "dataclass": Output,
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_rebuilt(name):
    model = Around(Returning(RECORDS[name])).eval()
    blocks, x = find_blocks(model, (9, H)), rows(40)
    with torch.no_grad():
        expected = model(x)
        with bound(blocks):
            found = model(x)
    assert type(found) is type(expected)
    (mine, my_form), (theirs, form) = flatten_result(found), flatten_result(expected)
    assert my_form == form
    for a, b in zip(mine, theirs, strict=True):
        if isinstance(b, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        else:
            assert a == b


def test_sum_that_is_not_the_first_result_is_found():
    model = Around(Returning(lambda y, z: (z, z.sum(), y)))
    (block,) = find_blocks(model, (9, H))
    assert not block.sums_experts
    assert largest_error([block], model, rows(40)) < 1e-5


class Calls(Around):
    """Calls its layer in some way."""

    def __init__(self, layer, how):
        super().__init__(layer)
        self.how = how

    def forward(self, x):
        return self.how(self.moe, x)


class ManyArguments(Routed):
    def forward(self, x, scale=None, *, mask=None, flag=True, name="a"):
        weights, ids = self.route(x)
        weights = weights if mask is None else weights * mask[:, None]
        y = self.combine(x, weights, ids)
        return y if scale is None else y * scale


HOWS = {
    "keyword": lambda moe, x: moe(x=x),
    "positional none": lambda moe, x: moe(x, None, mask=None),
    "number": lambda moe, x: moe(x, 0.5, flag=False),
    "text": lambda moe, x: moe(x, name="b"),
    "tensor keyword": lambda moe, x: moe(x, mask=x[:, 0].sigmoid()),
    "tensor after": lambda moe, x: moe(scale=x[:, :1].abs(), x=x),
    "boolean mask": lambda moe, x: moe(x, mask=x[:, 0] > 0),
}


@pytest.mark.parametrize("name", HOWS)
def test_every_way_to_call(name):
    model = Calls(ManyArguments(), HOWS[name])
    blocks = find_blocks(model, (9, H))
    assert largest_error(blocks, model, rows(40)) < 1e-5
    assert largest_error(blocks, model, rows(1)) < 1e-5


@pytest.mark.parametrize("name", ["keyword", "number", "tensor keyword"])
def test_arguments_are_put_back(name):
    layer = ManyArguments().eval()
    model = Calls(layer, HOWS[name])
    with recording(model) as record:
        model(rows(9))
    call = find_layer_call("moe", layer, record)
    args, kwargs = call.arguments(call.tensors)
    assert torch.equal(call.x, rows(9))
    picked = call.pick(args, kwargs)
    assert all(a is b for a, b in zip(picked, call.tensors, strict=True))
    torch.testing.assert_close(call.run(call.tensors), model(rows(9)))


def test_two_forms_of_call_are_refused():
    layer = ManyArguments()
    call = layer_call(layer, rows(9))
    with pytest.raises(UnsupportedModelError, match="called in two ways"):
        call.pick((rows(9),), {"mask": torch.ones(9)})
    with pytest.raises(UnsupportedModelError, match="called in two ways"):
        call.pick((), {"x": rows(9)})


def test_another_value_where_no_tensor_was_is_refused():
    call = layer_call(ManyArguments(), rows(9), None, flag=False)
    assert call.pick((rows(4), None), {"flag": False})[0].shape == (4, H)
    with pytest.raises(
        UnsupportedModelError, match=r"a tensor \[9\] as its argument 2, and .* None"
    ):
        call.pick((rows(9), torch.ones(9)), {"flag": False})
    with pytest.raises(UnsupportedModelError, match=r"True as its argument 3, and with False"):
        call.pick((rows(9), None), {"flag": True})


def test_two_forms_in_one_model_are_each_recognized():
    def twice(moe, x):
        return moe(x, mask=x[:, 0].sigmoid()) + moe(x)

    model = Calls(ManyArguments(), twice)
    (block,) = find_blocks(model, (9, H))
    assert largest_error([block], model, rows(40)) < 1e-5


def test_forms_that_differ_in_what_they_add_are_each_recognized():
    class Shifted(Routed):
        def forward(self, x, mask=None):
            y = super().forward(x)
            return y + 1 if mask is None else (y + 2) * mask[:, None]

    model = Calls(Shifted(), lambda moe, x: moe(x) + moe(x, x[:, 0].sigmoid()))
    blocks = find_blocks(model, (9, H))
    assert largest_error(blocks, model, rows(40)) < 1e-5


class MaskedSequences(nn.Module):
    """Gives its layer a mask only where there is something to hide, as transformers does."""

    def __init__(self):
        super().__init__()
        self.moe = ManyArguments()

    def forward(self, x, attention_mask):
        mask = None if bool(attention_mask.all()) else attention_mask.flatten().float()
        return self.moe(x.flatten(0, 1), mask=mask).view_as(x)


def test_a_mask_that_hides_nothing_in_the_example_is_recorded_all_the_same():
    model = MaskedSequences()
    blocks = find_blocks(model, (torch.randn(3, 5, H), torch.ones(3, 5, dtype=torch.int64)))
    x, mask = torch.randn(4, 7, H), torch.ones(4, 7, dtype=torch.int64)
    assert largest_error(blocks, model, x, mask) < 1e-5
    mask[1, 4:] = 0
    assert largest_error(blocks, model, x, mask) < 1e-5


def test_layer_that_does_not_run():
    layer = Routed()
    with recording(layer) as record:
        pass
    with pytest.raises(UnsupportedModelError, match=r"moe \(Routed\) does not run"):
        find_layer_call("moe", layer, record)


@pytest.mark.parametrize("x", [torch.arange(4), torch.randn(4)])
def test_tokens_need_two_axes_and_floats(x):
    with pytest.raises(UnsupportedModelError, match=r"float tensor \[..., H\] is expected"):
        layer_call(nn.Identity(), x)


class Opaque:
    pass


def test_unknown_arguments_are_refused():
    class Takes(nn.Module):
        def forward(self, x, thing):
            return x

    with pytest.raises(UnsupportedModelError, match="Opaque, which cannot be probed"):
        layer_call(Takes(), rows(3), Opaque())
