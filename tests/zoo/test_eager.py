"""The zoo's layers do in eager what its catalog says of them."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tests.zoo.catalog import CLASSIC, REFUSED, STYLES
from tests.zoo.outputs import run
from tests.zoo.refused import UNREACHED

EXPORTED = CLASSIC + STYLES
every_layer = pytest.mark.parametrize("layer", EXPORTED, ids=lambda layer: layer.name)


def all_inputs(layer):
    return [make() for make in (layer.inputs, *layer.other_inputs)]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_names_are_unique():
    names = [layer.name for layer in EXPORTED + REFUSED]
    assert len(names) == len(set(names))


@every_layer
def test_same_module_and_same_answer_each_time(layer):
    model, again = layer.make(), layer.make()
    assert not model.training
    states = zip(model.state_dict().items(), again.state_dict().items(), strict=True)
    assert all(n == m and torch.equal(a, b) for (n, a), (m, b) in states)
    for inputs in all_inputs(layer):
        before = [x.clone() for x in inputs]
        first = run(model, inputs)
        assert same(first, run(model, inputs))
        assert same(first, run(again, inputs))
        assert same(list(inputs), before), "the layer writes into its input"
        assert all(torch.isfinite(y).all() for y in first)
        assert first[0].shape[0] == inputs[0].shape[0]


@every_layer
def test_inputs_reach_the_experts(layer):
    model = layer.make()
    batches = all_inputs(layer)
    results = [run(model, inputs) for inputs in batches]
    tried = torch.linspace(0, layer.num_experts - 1, 16).long().unique().tolist()
    reached = 0
    for expert in tried:
        parameters = layer.expert_parameters(model, expert)
        assert parameters
        kept = [p.clone() for p in parameters]
        with torch.no_grad():
            for p in parameters:
                p.mul_(1.5).add_(0.1)
        changed = [not same(run(model, i), r) for i, r in zip(batches, results, strict=True)]
        reached += any(changed)
        with torch.no_grad():
            for p, was in zip(parameters, kept, strict=True):
                p.copy_(was)
    assert reached >= layer.reached * len(tried), f"{reached} of {len(tried)}"


class Margins(TorchFunctionMode):
    """The least relative distance between a last kept and a first left-out value of any top-k."""

    least = float("inf")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "topk":
            values = args[0] if args else kwargs["input"]
            k = args[1] if len(args) > 1 else kwargs["k"]
            dim = args[2] if len(args) > 2 else kwargs.get("dim", -1)
            ordered = values.movedim(dim, -1).sort(dim=-1, descending=True).values
            if int(k) < ordered.shape[-1]:
                kept, left = ordered[..., k - 1], ordered[..., k]
                margin = (kept - left) / kept.abs()
                margin = margin[torch.isfinite(left) & (kept != 0)]
                if margin.numel():
                    self.least = min(self.least, float(margin.min()))
        return func(*args, **kwargs)


@every_layer
def test_choices_are_clear(layer):
    model = layer.make()
    for inputs in all_inputs(layer):
        with Margins() as margins:
            run(model, inputs)
        assert margins.least > 3e-6


COUPLED = [layer for layer in EXPORTED if layer.coupled is not None]


@pytest.mark.parametrize("layer", COUPLED, ids=lambda layer: layer.name)
def test_coupling_is_what_the_catalog_says(layer):
    model = layer.make()
    differs = False
    for inputs in all_inputs(layer):
        batch = inputs[0].shape[0]
        together = run(model, inputs)
        alone = [run(model, [x[b : b + 1] for x in inputs]) for b in range(min(batch, 12))]
        for i, y in enumerate(together):
            if y.dim() == 0 or y.shape[0] != batch:
                continue
            rows = torch.cat([one[i] for one in alone])
            differs |= bool((rows - y[: len(rows)]).abs().max() > 2e-5 * y.abs().max())
    assert differs == layer.coupled


@pytest.mark.parametrize("layer", REFUSED, ids=lambda layer: layer.name)
def test_refused_layers_run_and_sit_where_they_say(layer):
    model = layer.make()
    assert model.get_submodule("encoder.ffn") is model.encoder.ffn
    for inputs in all_inputs(layer):
        (y,) = run(model, inputs)
        assert y.shape == (len(inputs[0]), 5)


# What is wrong with these is not that they give two answers to one input.
REPEATABLE = {"different_widths", "numpy_experts", "only_two_run"}


@pytest.mark.parametrize("layer", REFUSED, ids=lambda layer: layer.name)
def test_refused_layers_change_from_call_to_call(layer):
    model, inputs = layer.make(), layer.inputs()
    assert same(run(model, inputs), run(model, inputs)) == (layer.name in REPEATABLE)


@pytest.mark.parametrize(("name", "expected"), [("only_two_run", 2), ("late_experts_unreached", 3)])
def test_buggy_layers_never_run_some_experts(name, expected):
    (layer,) = [layer for layer in (*REFUSED, UNREACHED) if layer.name == name]
    model, used = layer.make(), set()
    for expert in model.encoder.ffn.experts:
        expert.register_forward_hook(
            lambda module, args, _y: used.add(module) if len(args[0]) else None
        )
    for inputs in all_inputs(layer):
        run(model, inputs)
    assert len(used) == expected
