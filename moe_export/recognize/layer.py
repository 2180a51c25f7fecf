"""A layer rebuilt: its own operators around the experts, the experts through the contract's ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.block import parameter_name
from moe_export.recognize.layer_call import LayerCall, OutputForm
from moe_export.recognize.program import (
    EXPERTS,
    Alignment,
    Environment,
    Program,
    constants,
)
from moe_export.recognize.routing import SlotRouting
from moe_export.recognize.sizes import Size
from moe_export.recognize.targets import Match
from moe_export.recognize.trace import INPUT, Ref, Trace

_MAX_CUTS = 8


@dataclass(frozen=True)
class RebuiltLayer:
    """The lowered form of one layer.

    Attributes:
        call: How the layer is called.
        path: Its path in the model.
        match: Where the experts are.
        head: From the inputs to the experts' rows and routing.
        tail: From the experts' sum to the results.
        sum_shape: Shape of the value that the experts' sum replaces.
        results: Identities of the results; plain values as they are; ``Untraceable`` otherwise.
        form: How results are returned.
        tensors: What is registered on the layer while bound.
        set_by_eager: Attributes that eager sets while it runs.
    """

    call: LayerCall
    path: str
    match: Match
    head: Program
    tail: Program
    sum_shape: tuple[Any, ...]
    results: tuple[Any, ...]
    form: OutputForm
    tensors: dict[str, Tensor] = field(default_factory=dict)
    set_by_eager: tuple[tuple[str, str], ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever eager takes
        """What eager's ``forward`` computes; traceable by ``torch.export``."""
        environment, rows, ids, weights = self._enter(args, kwargs)
        self._poison_attributes()
        module, bank = self.call.module, self.match.bank
        stacked = [getattr(module, parameter_name(name)) for name in bank.tensors]
        y = bank.lower(rows, ids, weights, stacked, self.path)
        if self.match.idle:
            served = ((ids >= 0) & (ids < bank.num_experts)).any(1, keepdim=True)
            y = torch.where(served, y, rows)
        environment.tensors[EXPERTS] = self._place(y, environment.point)
        self.tail.run(module, environment)
        return self.form.rebuild([self._result(r, environment) for r in self.results])

    def route(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Expert ids and weights ``[T, K]`` of a call."""
        _, _, ids, weights = self._enter(args, kwargs)
        return ids, weights

    @property
    def returns_sum(self) -> bool:
        """Whether the layer returns the weighted sum and nothing else."""
        by_token = not isinstance(self.match.routing, SlotRouting) and not self.match.idle
        by_token = by_token and not self.match.bank.copies
        return by_token and not self.tail.nodes and self.results == (EXPERTS,)

    @property
    def untraceable(self) -> frozenset[int]:
        """Results that the lowered form does not compute."""
        return frozenset(n for n, r in enumerate(self.results) if isinstance(r, Untraceable))

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Capacities that were found from numbers."""
        routing = self.match.routing
        own = [getattr(routing, "capacity", None), getattr(routing, "count", None)]
        found = [*self.head.sizes, *self.tail.sizes, *(s for s in own if isinstance(s, Size))]
        return tuple(dict.fromkeys(found))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know about how the layer was read."""
        found = [f"a size of {size} was inferred from eager's numbers" for size in self.sizes]
        for number in sorted(self.untraceable):
            reason = self.results[number].reason
            found.append(f"result {number} is not computed in the export: {reason}")
        return tuple(found)

    def _poison_attributes(self) -> None:
        """Make a model that reads what eager sets on the layer, such as a loss, give NaN.

        The whole model is compared with eager before it is exported, which shows the reader.
        """
        if torch.compiler.is_exporting():
            return
        for path, name in self.set_by_eager:
            owner = self.call.module.get_submodule(path)
            if isinstance(getattr(owner, name, None), Tensor | float):
                owner.__dict__[name] = torch.full((), float("nan"))

    def _enter(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Environment, Tensor, Tensor, Tensor]:
        tensors = self.call.pick(args, kwargs)
        point = self.call.point(tensors[self.call.main])
        environment = Environment({("leaf", "input", n): t for n, t in enumerate(tensors)}, point)
        module, match = self.call.module, self.match
        self.head.run(module, environment)
        rows = self.head.read(match.rows, module, environment)
        if isinstance(match.routing, SlotRouting):
            axis = match.routing.axis
            rows = rows.unflatten(axis, (match.bank.num_experts, -1)).movedim(axis, 0)
        rows = rows.reshape(-1, rows.shape[-1])
        values = [self.head.read(v, module, environment) for v in match.routing.values]
        num_experts = match.bank.num_experts
        ids, weights = match.routing.read(values, point, rows.shape[0], num_experts)
        return environment, rows, ids, weights

    def _place(self, y: Tensor, point: Sequence[Any]) -> Tensor:
        shape = [size.at(point) if isinstance(size, Size) else size for size in self.sum_shape]
        if not isinstance(self.match.routing, SlotRouting):
            return y.reshape(shape)
        axis, num_experts = self.match.routing.axis, self.match.bank.num_experts
        slots = shape[axis] // num_experts
        by_expert = [num_experts, *shape[:axis], slots, *shape[axis + 1 :]]
        return y.reshape(by_expert).movedim(0, axis).reshape(shape)

    def _result(self, result: Any, environment: Environment) -> Any:  # noqa: ANN401
        if isinstance(result, Untraceable):
            return result.placeholder()
        if isinstance(result, tuple):
            return self.tail.read(result, self.call.module, environment)
        return result


@dataclass(frozen=True)
class Untraceable:
    """A result that cannot be computed again: replaced by what no model can use unnoticed.

    Attributes:
        reason: Why not.
        like: What it was once: a tensor, or a number.
    """

    reason: str
    like: Any

    def placeholder(self) -> Any:  # noqa: ANN401 - as ``like``
        """A tensor of the same type and rank, or a number, that poisons what comes of it."""
        if not isinstance(self.like, Tensor):
            return float("nan")
        bad = float("nan") if self.like.is_floating_point() else -(2**31) + 1
        return torch.full_like(self.like, bad) if self.like.dtype != torch.bool else self.like


def rebuild_layer(call: LayerCall, path: str, alignment: Alignment, match: Match) -> RebuiltLayer:
    """Put the experts' ops where ``match`` found their sum.

    Raises:
        UnsupportedModelError: what lies before or behind the experts cannot be run at any shape.
    """
    reason: UnsupportedModelError | None = None
    fewest = min(_MAX_CUTS, *(len(sums) for sums in match.sums))
    # The first value is what the experts' sum was before anything else was done to it; where eager
    # adds nothing to it for experts without tokens, it is found from the end.
    for choice in (*range(-1, -1 - fewest, -1), *range(fewest)):
        cuts = [sums[choice] for sums in match.sums]
        try:
            return _rebuild(call, path, alignment.cut(cuts), match)
        except UnsupportedModelError as error:
            reason = reason or error
    assert reason is not None  # a match has at least one sum in each trace
    raise reason


def _rebuild(call: LayerCall, path: str, alignment: Alignment, match: Match) -> RebuiltLayer:
    head = Program(alignment, [match.rows, *match.routing.values])
    given = [EXPERTS, *(output for node in head.nodes for output in node.outputs)]
    trace = alignment.traces[0]
    results: list[Any] = []
    first_reason: UnsupportedModelError | None = None
    for number, leaf in enumerate(trace.results):
        if not isinstance(leaf, Ref):
            seen = [t.results[number] for t in alignment.traces if number < len(t.results)]
            same = len(seen) == len(alignment.traces) and all(s == leaf for s in seen)
            results.append(leaf if same else Untraceable("Python computes it", leaf))
            continue
        identity = alignment.identity(leaf.value)
        try:
            Program(alignment, [identity], given)
        except UnsupportedModelError as error:
            first_reason = first_reason or error
            results.append(Untraceable(str(error), trace.values[leaf.value].tensor))
        else:
            results.append(identity)
    tail = Program(alignment, [r for r in results if isinstance(r, tuple)], given)
    if not tail.taken([EXPERTS]) and EXPERTS not in results:
        raise first_reason or UnsupportedModelError("its results do not come from these experts")
    sums = [alignment.tensor(EXPERTS, n) for n in range(len(alignment.traces))]
    shapes = [tuple(t.shape) for t in sums if t is not None]
    if len({len(shape) for shape in shapes}) > 1:
        raise UnsupportedModelError("the experts' sum has other axes at other shapes")
    sum_shape = tuple(
        alignment.fit(sizes, [*head.sizes, *tail.sizes]) for sizes in zip(*shapes, strict=True)
    )
    if None in sum_shape:
        raise UnsupportedModelError(f"the experts' sum has sizes {shapes} that are not explained")
    _check_state(alignment.traces)
    tail.join_linear_layers([r for r in results if isinstance(r, tuple)])
    head.join_linear_layers(
        [match.rows, *match.routing.values, *tail.taken([o for n in head.nodes for o in n.outputs])]
    )
    assert trace.form is not None  # set by tracing
    tensors = {parameter_name(n): t for n, t in match.bank.tensors.items()}
    tensors |= constants(alignment, [head, tail])
    return RebuiltLayer(
        call=call,
        path=path,
        match=match,
        head=head,
        tail=tail,
        sum_shape=sum_shape,
        results=tuple(results),
        form=trace.form,
        tensors=tensors,
        set_by_eager=tuple(trace.changed),
    )


def _check_state(traces: Sequence[Trace]) -> None:
    """A buffer that the layer writes must have no part in its results."""
    for trace in traces:
        if not trace.written:
            continue
        read = {name for kind, name in trace.sources() if kind == "parameter"}
        for name in trace.written:
            if name == INPUT:
                raise UnsupportedModelError("it writes to its input, which the model may read")
            if name in read:
                raise UnsupportedModelError(
                    f"it reads its buffer {name}, which it writes in eval mode"
                )
