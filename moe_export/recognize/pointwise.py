"""The function between two products of a trace, where it is pointwise.

Experts that are no modules can have any activation: the operators between the product with an up
matrix and the one with a down matrix are read from the record. Views in between, which only say
how the author laid the rows out, are left out.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
import torch.utils._pytree as pytree

from moe_export.recognize.program import Identity, Node, Slot
from moe_export.recognize.trace import OpCall, Ref, Trace

_aten = torch.ops.aten
_PRODUCTS = {
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.addmm.default: 1,
    _aten.baddbmm.default: 1,
}
_VIEWS = {
    "view", "_unsafe_view", "permute", "t", "transpose", "unsqueeze", "squeeze", "expand", "clone",
    "alias", "detach", "reshape", "select", "index", "slice", "unbind", "split", "_to_copy",
    "index_select", "contiguous", "movedim",
}  # fmt: skip

# The value that the pointwise operators start from.
BEFORE: Identity = ("experts", "before")


class PointwiseFunctions:
    """Looks for pointwise functions between products of a trace.

    Args:
        trace: One eager run of a layer.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._stored = self._stored_leaves()

    def between(self, up: Set[str], down: Set[str]) -> tuple[list[Node], Identity] | None:
        """The operators from the product with ``up`` to the one with ``down``.

        Args:
            up: Names of the up matrices' parameters.
            down: Names of the down matrices' parameters.

        Returns:
            Nodes that start from ``BEFORE``, and the identity of the result; None if there is
            something else than pointwise operators of that one value.
        """
        for op in self._trace.ops:
            rows = self._rows_multiplied_with(op, down)
            if rows is not None:
                nodes: dict[int, Node] = {}
                result = self._follow(rows, up, nodes)
                return None if result is None else (list(nodes.values()), result)
        return None

    def _stored_leaves(self) -> dict[int, frozenset[str]]:
        """Values that are parameters, or views and selections of them, with their names."""
        found: dict[int, frozenset[str]] = {}
        for number, value in enumerate(self._trace.values):
            if value.leaf is not None:
                if value.leaf[0] == "parameter":
                    found[number] = frozenset([value.leaf[1]])
                continue
            assert value.op is not None  # not a leaf
            op = self._trace.ops[value.op]
            first = op.args[0] if op.args else None
            if _name(op) in _VIEWS and isinstance(first, Ref) and first.value in found:
                found[number] = found[first.value]
        return found

    def _rows_multiplied_with(self, op: OpCall, names: Set[str]) -> int | None:
        if op.func not in _PRODUCTS:
            return None
        sides = [a.value for a in op.args[_PRODUCTS[op.func] :] if isinstance(a, Ref)]
        stored = [self._stored.get(side, frozenset()) for side in sides]
        for side, other in ((0, 1), (1, 0)):
            if stored[other] and stored[other] <= names and not stored[side]:
                return sides[side]
        return None

    def _follow(self, number: int, up: Set[str], nodes: dict[int, Node]) -> Identity | None:
        """Go back from a value to the product with ``up``, adding the operators on the way."""
        value = self._trace.values[number]
        if value.op is None:
            return None
        op = self._trace.ops[value.op]
        if self._rows_multiplied_with(op, up) is not None:
            return BEFORE
        tensors = [a for a in pytree.tree_leaves((op.args, op.kwargs)) if isinstance(a, Ref)]
        computed = [a for a in tensors if a.value not in self._stored]
        is_bias = op.func is _aten.add.Tensor and len(computed) == 1 and len(tensors) == 2
        if _name(op) in _VIEWS or is_bias:
            # Where the bias is added is known from the reading of the parameters.
            return self._follow(computed[0].value, up, nodes) if computed else None
        if torch.Tag.pointwise not in op.func.tags or len(computed) != len(tensors):
            return None
        if value.op not in nodes:
            before = {a.value: self._follow(a.value, up, nodes) for a in computed}
            if None in before.values():
                return None
            args, kwargs = _fill((op.args, op.kwargs), before)
            nodes[value.op] = Node(op.func, args, kwargs, (("experts", number),))
        return nodes[value.op].outputs[0]


def _name(op: OpCall) -> str:
    return str(op.func.name()).removeprefix("aten::").split(".")[0]


def _fill(given: Any, before: dict[int, Identity | None]) -> Any:  # noqa: ANN401 - arguments
    if isinstance(given, Ref):
        identity = before[given.value]
        assert identity is not None  # checked by the caller
        return Slot(identity)
    if isinstance(given, (list, tuple)):
        return [_fill(item, before) for item in given]
    if isinstance(given, dict):
        return {name: _fill(item, before) for name, item in given.items()}
    return given
