"""A layer's operators, aligned over traces at several shapes, to be run again at any shape."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.hints import Hints
from moe_export.recognize.sizes import Point, Quotient, Size, fit_number
from moe_export.recognize.trace import OpCall, Ref, Trace

_aten = torch.ops.aten
# Views depend on strides, which a replaced value need not share.
_RESHAPES = {_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default}

# Products with a matrix, and how many arguments they have.
_PRODUCTS = {_aten.mm.default: 2, _aten.addmm.default: 3}

# What tells a value from the others of its trace, and is the same in every trace.
Identity = tuple[Any, ...]
# The experts' sum, where it is cut out of a trace.
EXPERTS: Identity = ("leaf", "experts", 0)


class Alignment:
    """Traces of one layer at several shapes, and which values correspond.

    Two values correspond when they were made by the same operators from the same leaves, numbers
    aside; among equals, in the same order.

    Args:
        traces: The first is the one that programs are made from.
        points: The shape that each trace ran at.
        cuts: For each trace, a value that counts as a leaf, however it was made.
        hints: Which capacities are likely.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        points: Sequence[Point],
        cuts: Sequence[int | None] = (),
        hints: Hints = Hints(),  # noqa: B008 - immutable
    ) -> None:
        self.traces, self.points, self.hints = traces, points, hints
        cuts = cuts or [None] * len(traces)
        self._interned: dict[Any, int] = {}
        self._identities = [
            self._identify(trace, cut) for trace, cut in zip(traces, cuts, strict=True)
        ]
        self._dependent = [_dependent(trace, cut) for trace, cut in zip(traces, cuts, strict=True)]
        self._found = [{identity: n for n, identity in enumerate(i)} for i in self._identities]

    def cut(self, cuts: Sequence[int]) -> Alignment:
        """The same traces with a value of each, the experts' sum, as a leaf."""
        return Alignment(self.traces, self.points, cuts, self.hints)

    def fit(self, numbers: Sequence[float], known: Sequence[Size] = ()) -> Any:  # noqa: ANN401
        """A number of each trace as a function of the shape; see ``fit_number``."""
        return fit_number(numbers, self.points, known, self.hints)

    def identity(self, value: int, trace: int = 0) -> Identity:
        """The identity of a value of a trace."""
        return self._identities[trace][value]

    def find(self, identity: Identity, trace: int) -> int | None:
        """The corresponding value of another trace."""
        return self._found[trace].get(identity)

    def tensor(self, identity: Identity, trace: int = 0) -> Tensor | None:
        """The corresponding tensor of a trace."""
        value = self.find(identity, trace)
        return None if value is None else self.traces[trace].values[value].tensor

    def is_data_dependent(self, identity: Identity) -> bool:
        """Whether the value is made, in some trace, from one whose shape depends on values.

        Such a value cannot be run again at another input.
        """
        numbers = [self.find(identity, n) for n in range(len(self.traces))]
        return any(
            number is None or dependent[number]
            for number, dependent in zip(numbers, self._dependent, strict=True)
        )

    def _identify(self, trace: Trace, cut: int | None) -> list[Identity]:
        identities: list[Identity] = []
        seen: dict[int, int] = {}
        by_op: dict[int, tuple[int, int]] = {}
        for number, value in enumerate(trace.values):
            if number == cut:
                identities.append(EXPERTS)
                continue
            if value.op is None:
                assert value.leaf is not None  # a value is made by an operator or a leaf
                identities.append(("leaf", *value.leaf))
                continue
            if value.op not in by_op:
                op = trace.ops[value.op]
                key = self._intern(
                    (op.func.name(), self._abstract((op.args, op.kwargs), identities))
                )
                by_op[value.op] = (key, seen.get(key, 0))
                seen[key] = seen.get(key, 0) + 1
            identities.append((*by_op[value.op], value.output))
        return identities

    def _intern(self, key: Any) -> int:  # noqa: ANN401 - anything hashable
        return self._interned.setdefault(key, len(self._interned))

    def _abstract(self, given: Any, identities: list[Identity]) -> Any:  # noqa: ANN401
        if isinstance(given, Ref):
            return identities[given.value]
        if isinstance(given, (list, tuple)):
            return tuple(self._abstract(item, identities) for item in given)
        if isinstance(given, dict):
            return tuple((k, self._abstract(v, identities)) for k, v in sorted(given.items()))
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            return "number"
        return str(given)


def _as_linear_layers(nodes: Sequence[Node], targets: set[Identity]) -> list[Node]:
    weights = {
        node.outputs[0]: node.args[0]
        for node in nodes
        if node.func is _aten.t.default and node.args[0].identity[:2] == ("leaf", "parameter")
    }
    found, read = [], set(targets)
    for node in nodes:
        layer = node
        if node.func in _PRODUCTS and not node.kwargs and len(node.args) == _PRODUCTS[node.func]:
            *bias, x, matrix = node.args
            if matrix.identity in weights:
                args = [x, weights[matrix.identity], *bias]
                layer = Node(F.linear, args, {}, node.outputs)
        found.append(layer)
        slots = pytree.tree_leaves((layer.args, layer.kwargs))
        read.update(a.identity for a in slots if isinstance(a, Slot))
    return [n for n in found if n.outputs[0] not in weights or n.outputs[0] in read]


def _dependent(trace: Trace, cut: int | None) -> list[bool]:
    """For each value of a trace, whether its shape goes back to values."""
    found: list[bool] = []
    by_op: dict[int, bool] = {}
    for number, value in enumerate(trace.values):
        if value.op is None or number == cut:
            found.append(False)
            continue
        if value.op not in by_op:
            op = trace.ops[value.op]
            by_op[value.op] = op.by_value or any(
                found[r.value] for r in _refs((op.args, op.kwargs))
            )
        found.append(by_op[value.op])
    return found


@dataclass(frozen=True)
class Slot:
    """An argument of a node that is a value."""

    identity: Identity


@dataclass(frozen=True)
class Node:
    """One operator of a program; tensors in ``args`` and ``kwargs`` are ``Slot``."""

    func: Any
    args: Any
    kwargs: Any
    outputs: tuple[Identity, ...]


@dataclass(frozen=True)
class Environment:
    """Values while a program runs: the tensors by identity, and the sizes of the leading axes."""

    tensors: dict[Identity, Tensor]
    point: tuple[Any, ...]


Apply = Callable[[Any, list[Any], dict[str, Any]], Any]


def apply_operator(func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Call a recorded operator; a view becomes a reshape, which works for any strides."""
    return (torch.reshape if func in _RESHAPES else func)(*args, **kwargs)


class Program:
    """The operators that make some values of a layer.

    Args:
        alignment: The traces.
        targets: Values to make.
        given: Values that are there when the program starts, besides the leaves.

    Raises:
        UnsupportedModelError: a target depends on an operator whose result has a shape that
            depends on values, or on a number that the traces do not explain.
    """

    def __init__(
        self, alignment: Alignment, targets: Sequence[Identity], given: Sequence[Identity] = ()
    ) -> None:
        self._alignment = alignment
        self.leaves: set[Identity] = set()
        self.sizes: list[Size]
        needed = sorted(self._needed(targets, set(given)))
        aligned = [self._aligned(index) for index in needed]
        self._known = self.sizes = self._capacities(aligned)
        self.nodes = [self._node(ops) for ops in aligned]

    @classmethod
    def of_nodes(cls, nodes: Sequence[Node]) -> Program:
        """A program of given operators, which read nothing but given values."""
        program = cls.__new__(cls)
        program.leaves, program.sizes, program.nodes = set(), [], list(nodes)
        return program

    def run(
        self, module: nn.Module, environment: Environment, apply: Apply = apply_operator
    ) -> None:
        """Add the targets to the environment; traceable by ``torch.export``.

        Args:
            module: Holds the parameters and constants.
            environment: Inputs and given values; receives what is made.
            apply: Calls an operator.
        """
        for node in self.nodes:
            args, kwargs = (self._fill(a, module, environment) for a in (node.args, node.kwargs))
            made = apply(node.func, args, kwargs)
            flat = [made] if isinstance(made, Tensor) else list(made)
            environment.tensors.update(zip(node.outputs, flat, strict=True))

    def join_linear_layers(self, targets: Sequence[Identity]) -> None:
        """Make products with a transposed parameter the linear layers that they come from.

        Exporters keep a linear layer's weight as it is stored.

        Args:
            targets: Values that must still be made.
        """
        self.nodes = _as_linear_layers(self.nodes, set(targets))

    def taken(self, values: Sequence[Identity]) -> list[Identity]:
        """Which of the values an operator takes."""
        slots = pytree.tree_leaves([(node.args, node.kwargs) for node in self.nodes])
        read = {a.identity for a in slots if isinstance(a, Slot)}
        return [value for value in values if value in read]

    def read(self, identity: Identity, module: nn.Module, environment: Environment) -> Tensor:
        """A value of the environment, or a leaf."""
        if identity in environment.tensors:
            return environment.tensors[identity]
        if identity[:2] == ("leaf", "parameter"):
            owned: Any = functools.reduce(getattr, identity[2].split("."), module)
            assert isinstance(owned, Tensor)  # the name is a parameter's or a buffer's
            return owned
        # Registered while the layer is bound, so that an exporter sees it as the layer's own.
        own: Tensor | None = getattr(module, constant_name(identity[2]), None)
        return self._alignment.traces[0].constants[identity[2]] if own is None else own

    def _needed(self, targets: Sequence[Identity], given: set[Identity]) -> set[int]:
        trace, needed, pending = self._alignment.traces[0], set[int](), list(targets)
        while pending:
            identity = pending.pop()
            if identity in given:
                continue
            number = self._alignment.find(identity, 0)
            if number is None:
                raise UnsupportedModelError("it is made from the experts' own results")
            value = trace.values[number]
            if value.op is None:
                self._check_leaf(identity)
                continue
            if self._alignment.is_data_dependent(identity):
                name = trace.ops[value.op].func.name()
                raise UnsupportedModelError(
                    f"{name} works on a selection whose size depends on values"
                )
            if value.op not in needed:
                needed.add(value.op)
                op = trace.ops[value.op]
                pending.extend(
                    self._alignment.identity(r.value) for r in _refs((op.args, op.kwargs))
                )
        return needed

    def _check_leaf(self, identity: Identity) -> None:
        self.leaves.add(identity)
        if identity[1] != "constant":
            return
        found = [self._alignment.tensor(identity, n) for n in range(len(self._alignment.traces))]
        if not all(f is not None and same_tensor(f, found[0]) for f in found):
            raise UnsupportedModelError("it makes a constant from its input's shape or values")

    def _aligned(self, index: int) -> list[OpCall]:
        """An operator of the first trace with those of the others that correspond."""
        traces = self._alignment.traces
        op = traces[0].ops[index]
        identity = self._alignment.identity(op.outputs[0])
        ops = []
        for n, trace in enumerate(traces):
            value = self._alignment.find(identity, n)
            producer = None if value is None else trace.values[value].op
            if producer is None:
                raise UnsupportedModelError(
                    f"{op.func.name()} runs at some shapes or values only: Python decides"
                )
            ops.append(trace.ops[producer])
        return ops

    def _capacities(self, aligned: Sequence[Sequence[OpCall]]) -> list[Size]:
        """Rounded shares of the tokens among the operators' numbers."""
        found: dict[Size, None] = {}
        for ops in aligned:
            flat = [pytree.tree_leaves((op.args, op.kwargs)) for op in ops]
            for numbers in zip(*flat, strict=True):
                if all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
                    size = self._alignment.fit(numbers)
                    if isinstance(size, Size) and size.rounding != "exact":
                        found[dataclasses.replace(size, factor=1)] = None
        return list(found)

    def _node(self, ops: Sequence[OpCall]) -> Node:
        outputs = tuple(self._alignment.identity(value) for value in ops[0].outputs)
        args = self._unify([o.args for o in ops], ops[0])
        return Node(ops[0].func, args, self._unify([o.kwargs for o in ops], ops[0]), outputs)

    def _unify(self, given: Sequence[Any], op: OpCall) -> Any:  # noqa: ANN401
        first = given[0]
        if isinstance(first, Ref):
            return Slot(self._alignment.identity(first.value))
        if isinstance(first, (list, tuple)):
            return [self._unify(items, op) for items in zip(*given, strict=True)]
        if isinstance(first, dict):
            return {name: self._unify([g[name] for g in given], op) for name in first}
        if isinstance(first, (int, float)) and not isinstance(first, bool):
            number = self._alignment.fit(given, self._known)
            if number is None:
                raise UnsupportedModelError(
                    f"{op.func.name()} has the number {', '.join(map(str, given))} at shapes "
                    f"{', '.join(map(str, self._alignment.points))}: no function of the shape that "
                    "is known explains it"
                )
            return number
        return first

    def _fill(self, given: Any, module: nn.Module, environment: Environment) -> Any:  # noqa: ANN401
        if isinstance(given, Slot):
            return self.read(given.identity, module, environment)
        if isinstance(given, list):
            return [self._fill(item, module, environment) for item in given]
        if isinstance(given, dict):
            return {name: self._fill(v, module, environment) for name, v in given.items()}
        return given.at(environment.point) if isinstance(given, Size | Quotient) else given


def constant_name(index: int) -> str:
    """Attribute under which a bound module holds a tensor that eager made outside of operators."""
    return f"moe_export_constant_{index}"


def constants(alignment: Alignment, programs: Sequence[Program]) -> Mapping[str, Tensor]:
    """The constants that programs read, by attribute name."""
    leaves = set[Identity]().union(*(program.leaves for program in programs))
    indices = [identity[2] for identity in leaves if identity[1] == "constant"]
    return {constant_name(i): alignment.traces[0].constants[i] for i in sorted(indices)}


def same_tensor(a: Tensor, b: Tensor | None) -> bool:
    """Whether two tensors have the same shape, type and values."""
    return b is not None and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _refs(given: Any) -> Iterator[Ref]:  # noqa: ANN401
    if isinstance(given, Ref):
        yield given
    elif isinstance(given, (list, tuple)):
        for item in given:
            yield from _refs(item)
    elif isinstance(given, dict):
        yield from _refs(list(given.values()))
