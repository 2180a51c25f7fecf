"""Builds a layer of the zoo and compares its bundle with eager."""

from __future__ import annotations

import inspect

import numpy as np
import onnx_ir as ir
import torch

import moe_export
from tests.zoo.outputs import leaves

TOLERANCE = 2e-5


def build(model, layer, folder, **options):
    return moe_export.build(model, layer.inputs(), output=folder, **options)


def named(model, inputs):
    """The inputs as arrays, by the names of ``forward``'s arguments."""
    names = inspect.signature(model.forward).parameters
    return {n: x.numpy() for n, x in zip(names, inputs, strict=False)}


def compare(bundle, model, inputs):
    """Every tensor that eager returns, in order, against the bundle's outputs."""
    with torch.no_grad():
        expected = leaves(model(*inputs))
    results = bundle.run(named(model, inputs))
    names = [value["name"] for value in bundle.manifest.outputs]
    assert len(names) == len(expected), f"outputs {names}, eager has {list(expected)}"
    if set(names) == set(expected):  # a dict's outputs may come in another order
        names = list(expected)
    for name, eager in zip(names, expected.values(), strict=True):
        where = f"output {name} for inputs {[tuple(x.shape) for x in inputs]}"
        found, wanted = results[name], eager.numpy()
        assert found.shape == wanted.shape, f"{where}: {found.shape} is not {wanted.shape}"
        if not np.issubdtype(wanted.dtype, np.floating):
            assert (found == wanted).all(), f"{where}: {(found != wanted).sum()} differ"
            continue
        assert np.isfinite(found).all(), where
        error = np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30)
        assert error <= TOLERANCE, f"{where}: error {error:.1e}"


def nodes(bundle):
    """Every node of the graph, of its subgraphs and of its own functions."""
    model = ir.load(bundle.folder / "model.onnx")
    found = list(ir.traversal.RecursiveGraphIterator(model.graph))
    for function in model.functions.values():
        if function.domain != "moe_export":
            found += ir.traversal.RecursiveGraphIterator(function)
    return found


def check_layers(bundle, layer):
    """Every MoE layer is listed, and has at least one node of this package beside its router."""
    found = [n for n in nodes(bundle) if n.domain == "moe_export" and "Gating" not in n.op_type]
    assert len(found) >= layer.moe_layers, f"{len(found)} nodes for {layer.moe_layers} layers"
    listed = len(bundle.manifest.layers)
    assert listed >= layer.moe_layers, f"{listed} layers listed, {layer.moe_layers} in the model"
