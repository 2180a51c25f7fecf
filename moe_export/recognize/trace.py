"""Record the ATen operators of one eager run of a layer, without mutation.

``torch.func.functionalize`` turns in-place operators and writes through views into new values, so
that each value of the record is made once. Operators whose result has a shape that depends on
values (``nonzero``, a mask index) are marked: what is not made from them can be run again, and
exported, as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.layer_call import LayerCall, OutputForm, flatten_result

_aten = torch.ops.aten
# In ``Trace.written``, instead of a name.
INPUT = "an input"
_MASKS = (torch.bool, torch.uint8)
_DYNAMIC = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
_RANDOM = torch.Tag.nondeterministic_seeded


@dataclass(frozen=True)
class Ref:
    """A tensor argument: an index into ``Trace.values``."""

    value: int


@dataclass(frozen=True)
class OpCall:
    """One operator.

    Attributes:
        func: The operator.
        args, kwargs: Its arguments; tensors are ``Ref``.
        outputs: Ids of the values that it made.
        by_value: Whether the shape of its result depends on values.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    by_value: bool = False


@dataclass(frozen=True)
class Value:
    """One tensor of the run.

    Attributes:
        tensor: What it was.
        op: Index of the operator that made it; None for a leaf.
        output: Which of the operator's tensors it is.
        leaf: ``("input", index)``, ``("parameter", name)`` or ``("constant", index)``.
    """

    tensor: Tensor
    op: int | None = None
    output: int = 0
    leaf: tuple[str, Any] | None = None


@dataclass
class Trace:
    """One eager run of a layer.

    Attributes:
        inputs: The tensors it was called with.
        ops: Operators in order.
        values: All tensors.
        results: The layer's result as a flat list; tensors are ``Ref``.
        form: How the flat list makes the result.
        random: Names of operators that drew random numbers.
        constants: Tensors that are neither inputs nor the layer's.
        written: Names of buffers that the layer writes to; the recording leaves them as they are.
        changed: Attributes that the layer set, such as a loss: the module's path and the name.
    """

    inputs: Sequence[Tensor]
    ops: list[OpCall] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    form: OutputForm | None = None
    random: list[str] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    changed: list[tuple[str, str]] = field(default_factory=list)

    def sources(self) -> set[tuple[str, Any]]:
        """The leaves that the results are made from, by whatever way."""
        pending = [result.value for result in self.results if isinstance(result, Ref)]
        seen: set[int] = set()
        while pending:
            number = pending.pop()
            if number in seen:
                continue
            seen.add(number)
            made_by = self.values[number].op
            if made_by is not None:
                op = self.ops[made_by]
                given = pytree.tree_leaves((op.args, op.kwargs))
                pending += [item.value for item in given if isinstance(item, Ref)]
        return {leaf for n in seen if (leaf := self.values[n].leaf) is not None}


def trace_layer(call: LayerCall, tensors: Sequence[Tensor]) -> Trace:
    """Run the layer once in eager and record it.

    Args:
        call: How the layer is called.
        tensors: The tensors to call it with.

    Raises:
        UnsupportedModelError: the layer does something that cannot be recorded, such as writing to
            its own buffers or leaving PyTorch.
    """
    inputs = [t.clone() for t in tensors]
    trace = Trace(inputs)
    recorder = _Recorder(call.module, trace)

    buffers = dict(call.module.named_buffers())

    def run(*given: Tensor) -> list[Tensor]:
        # Buffers are arguments here, so that a write to one is noticed and not carried out.
        state = dict(zip(buffers, given[len(inputs) :], strict=True))
        args, kwargs = call.arguments(given[: len(inputs)])
        result = torch.func.functional_call(call.module, state, args, kwargs)
        leaves, trace.form = flatten_result(result)
        made = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        trace.results = [Ref(-1) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return made

    kept = _attributes(call.module)
    try:
        with torch.no_grad(), recorder, _Conversions():
            made = torch.func.functionalize(run, remove="mutations")(*inputs, *buffers.values())
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{call.where}: {error}") from error
    except Exception as error:  # the layer's own code, under functionalize
        reason = str(error).split("\n", 1)[0]
        raise UnsupportedModelError(
            f"{call.where} cannot be recorded: {type(error).__name__}: {reason}"
        ) from error
    finally:
        trace.changed = _restore(kept)
    found = iter(made)
    trace.results = [
        Ref(recorder.index(next(found))) if isinstance(leaf, Ref) else leaf
        for leaf in trace.results
    ]
    return trace


# A module, a dictionary of its attributes, and what that held.
_Kept = list[tuple[str, dict[str, Any], dict[str, Any]]]


def _attributes(module: nn.Module) -> _Kept:
    owners = [(p, d) for p, m in module.named_modules() for d in (m.__dict__, m._buffers)]
    return [(path, owner, dict(owner)) for path, owner in owners]


def _restore(kept: _Kept) -> list[tuple[str, str]]:
    """Undo attributes that the layer set, such as a loss: they hold recording's own tensors.

    Returns:
        Paths of modules, and names of the attributes.
    """
    changed = []
    for path, owner, attributes in kept:
        changed += [
            (path, name)
            for name, value in owner.items()
            if name not in attributes or attributes[name] is not value
        ]
        owner.clear()
        owner.update(attributes)
    return changed


class _Recorder(TorchDispatchMode):
    def __init__(self, module: nn.Module, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace = trace
        self._index: dict[int, int] = {}
        owned = [*module.named_parameters(), *module.named_buffers()]
        self._owned = {_place(tensor): name for name, tensor in owned}
        for number, tensor in enumerate(trace.inputs):
            self._add(Value(tensor, leaf=("input", number)))

    def index(self, tensor: Tensor) -> int:
        """The id of a tensor; a new leaf if no operator made it."""
        if id(tensor) in self._index:
            return self._index[id(tensor)]
        name = self._owned.get(_place(tensor))
        if name is not None:
            return self._add(Value(tensor, leaf=("parameter", name)))
        self._trace.constants.append(tensor.clone())
        return self._add(Value(tensor, leaf=("constant", len(self._trace.constants) - 1)))

    def _add(self, value: Value) -> int:
        self._trace.values.append(value)
        self._index[id(value.tensor)] = len(self._trace.values) - 1
        return len(self._trace.values) - 1

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self,
        func,  # noqa: ANN001 - an operator overload
        types,  # noqa: ANN001
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        saved_args, saved_kwargs = self._refer(args), self._refer(kwargs)
        if func._schema.is_mutable and not self._detach_target(args[0]):
            return args[0]
        result = func(*args, **kwargs)
        if _RANDOM in func.tags and any(t.numel() for t in _tensors(result)):
            self._trace.random.append(func.name())
        outputs = tuple(
            self._add(Value(t, len(self._trace.ops), n)) for n, t in enumerate(_tensors(result))
        )
        by_value = _shape_by_value(func, args)
        call = OpCall(_functional(func), saved_args, saved_kwargs, outputs, by_value)
        self._trace.ops.append(call)
        return result

    def _detach_target(self, target: Tensor) -> bool:
        """Keep what ``target`` was before it is written to; False if the layer owns it.

        Only composite operators write below functionalization, to tensors they have just made.
        """
        number = self.index(target)
        value = self._trace.values[number]
        if value.leaf is not None:
            kind, name = value.leaf
            self._trace.written.append(INPUT if kind == "input" else str(name))
            return False
        self._trace.values[number] = dataclasses.replace(value, tensor=target.clone())
        return True

    def _refer(self, given: Any) -> Any:  # noqa: ANN401 - an operator's arguments
        if isinstance(given, Tensor):
            return Ref(self.index(given))
        if isinstance(given, (list, tuple)):
            return type(given)(self._refer(item) for item in given)
        if isinstance(given, dict):
            return {name: self._refer(item) for name, item in given.items()}
        return given


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _shape_by_value(func: Any, args: tuple[Any, ...]) -> bool:  # noqa: ANN401 - an operator
    if func is _aten.index.Tensor:
        return any(isinstance(i, Tensor) and i.dtype in _MASKS for i in args[1])
    return bool(_DYNAMIC.intersection(func.tags))


def _functional(func: Any) -> Any:  # noqa: ANN401 - an operator
    """The operator that gives what ``func`` writes."""
    if not func._schema.is_mutable:
        return func
    name = func._schema.name.removeprefix("aten::").removesuffix("_")
    return getattr(getattr(_aten, name), func._overloadname)


def _tensors(given: Any) -> Iterator[Tensor]:  # noqa: ANN401 - arguments or results
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, (list, tuple)):
        for item in given:
            yield from _tensors(item)
    elif isinstance(given, dict):
        yield from _tensors(list(given.values()))


class _Conversions(TorchFunctionMode):
    """What leaves PyTorch and does not work on the tensors of ``functionalize``."""

    def __torch_function__(  # type: ignore[no-untyped-def]
        self,
        func,  # noqa: ANN001
        types,  # noqa: ANN001
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func is Tensor.tolist:
            return _to_list(args[0])
        if func in (Tensor.numpy, Tensor.__array__):
            raise UnsupportedModelError("it computes with NumPy inside, which cannot be recorded")
        return func(*args, **(kwargs or {}))


def _to_list(tensor: Tensor) -> Any:  # noqa: ANN401 - a number or nested lists
    return tensor.item() if tensor.dim() == 0 else [_to_list(item) for item in tensor.unbind(0)]
