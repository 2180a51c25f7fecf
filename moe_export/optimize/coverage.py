"""Which cases inside a router were seen.

A router that is odd in a rare case tests for it, or bounds a value. As long as a condition has
been seen one way only, or a bound never met, agreement says nothing about the other case.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from moe_export.ops.spec import TopKGating
from moe_export.optimize.observation import Observation
from moe_export.optimize.router_slice import RouterSlice
from moe_export.optimize.slice_run import SliceRun
from moe_export.runners.arrays import Array

# Conditions about numbers that the judged rows do not have.
_EXEMPT = {"IsNaN", "IsInf"}
# What a bound may do to the value that it bounds.
_RAISED, _LOWERED, _PASSED = "raised", "lowered", "passed"


class Coverage:
    """Collects over runs.

    Args:
        part: The cut.
        names: Values to watch, all of which depend on the logits.
        attributes: What explains the router: a bound that is its epsilon needs not be met.
    """

    def __init__(self, part: RouterSlice, names: set[str], attributes: TopKGating) -> None:
        nodes = [n for n in part.model.graph if str(n.outputs[0].name) in names]
        self._conditions = {
            (str(value.name), way)
            for node in nodes
            if node.op_type not in _EXEMPT
            for value in node.outputs
            if value.dtype == ir.DataType.BOOL
            for way in (True, False)
        }
        self._bounds = {
            (str(node.inputs[0].name), str(node.outputs[0].name), event)
            for node in nodes
            for event in _bound_events(node, attributes)
            if node.inputs[0] is not None
        }
        self._logits = str(part.model.graph.inputs[0].name)

    def add(self, run: SliceRun, seen: Observation) -> None:
        """Note what the judged rows of a run show."""
        values = {**run.values, self._logits: run.logits}
        for name, way in list(self._conditions):
            if (_judged(values[name], seen) == way).any():
                self._conditions.discard((name, way))
        for before, after, event in list(self._bounds):
            if before not in values or _happens(values[before], values[after], event, seen):
                self._bounds.discard((before, after, event))

    @property
    def complete(self) -> bool:
        """Whether every case was seen."""
        return not self._conditions and not self._bounds


def _bound_events(node: ir.Node, attributes: TopKGating) -> Iterator[str]:
    """What a node that bounds its first input may do to it."""
    bounds: dict[str, list[ir.Value | None]] = {
        "Clip": [*node.inputs[1:], None, None],
        "Max": [node.inputs[-1], None],
        "Min": [None, node.inputs[-1]],
        "Relu": [node.inputs[0], None],
    }
    if node.op_type not in bounds:
        return
    low, high = bounds[node.op_type][:2]
    yield _PASSED
    if low is not None and not _is_epsilon(low, attributes):
        yield _RAISED
    if high is not None:
        yield _LOWERED


def _is_epsilon(bound: ir.Value, attributes: TopKGating) -> bool:
    tensor = ir.convenience.get_const_tensor(bound)
    clamps = attributes.renormalize and attributes.epsilon_mode == "clamp"
    return (
        clamps
        and tensor is not None
        and tensor.size == 1
        and bool(np.float32(attributes.epsilon) == tensor.numpy().reshape(()))
    )


def _happens(before: Array, after: Array, event: str, seen: Observation) -> bool:
    if before.shape != after.shape:
        return True  # the second input is the one that is bounded
    old, new = _judged(before, seen), _judged(after, seen)
    kinds = {_RAISED: new > old, _LOWERED: new < old, _PASSED: new == old}
    return bool(kinds[event].any())


def _judged(value: Array, seen: Observation) -> Array:
    tokens = len(seen.judged)
    return value.reshape(tokens, -1)[seen.judged] if value.size % tokens == 0 else value
