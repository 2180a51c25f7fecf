"""Inputs and outputs of a graph that no session is opened for."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from moe_export.runners.onnxruntime import Signature

# What ONNX Runtime, and so the manifest, calls types that are not called as NumPy has them.
_NAMES = {"float32": "float", "float64": "double"}


def graph_signature(model: ir.Model) -> tuple[tuple[Signature, ...], tuple[Signature, ...]]:
    """Name, type and shape of every input and of every output."""
    return _signatures(model.graph.inputs), _signatures(model.graph.outputs)


def _signatures(values: Iterable[ir.Value]) -> tuple[Signature, ...]:
    found = []
    for value in values:
        assert value.name  # exported values have names, types and shapes
        assert value.dtype is not None
        assert value.shape is not None
        kind = value.dtype.numpy().name
        sizes = tuple(s if isinstance(s, int) else str(s.value) for s in value.shape)
        found.append(Signature(value.name, f"tensor({_NAMES.get(kind, kind)})", sizes))
    return tuple(found)
