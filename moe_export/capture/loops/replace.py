"""Put proved forms without loops in place of a model's functions while it is traced."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import nn

import moe_export.capture.loops.recurrences  # noqa: F401 - registers the operators
from moe_export.capture.loops.delta_rule import GATED_DELTA_RULE
from moe_export.capture.loops.form import Arguments, LoopForm, call_arguments, call_key, prove
from moe_export.capture.loops.lightning import LIGHTNING_ATTENTION
from moe_export.capture.loops.mamba import SELECTIVE_SCAN
from moe_export.errors import UnsupportedModelError

FORMS = (GATED_DELTA_RULE, SELECTIVE_SCAN, LIGHTNING_ATTENTION)


@dataclass
class LoopSite:
    """A function of the model that may loop over tokens.

    In eager it computes what it always did; while it is traced its form runs instead. What it was
    traced with is kept, for ``prove``.

    Attributes:
        name: The function's, or the module's class.
        original: Eager's function.
        form: What it is taken for.
        compute: The form's computation, its module bound where it has one.
        calls: Arguments that it was traced with, by kind of call.
    """

    name: str
    original: Callable[..., Any]
    form: LoopForm
    compute: Callable[..., Any]
    calls: dict[Hashable, Arguments] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the function's own
        """What eager computes; while tracing, the form's."""
        if not torch.compiler.is_exporting():
            return self.original(*args, **kwargs)
        arguments = call_arguments(self.original, args, kwargs)
        key = call_key(self.form, arguments)
        if key is None:
            return self.original(*args, **kwargs)
        self.calls[key] = arguments
        return self.compute(**arguments)

    def prove(self) -> str:
        """Compare eager's function with its form for every kind of call that was traced.

        Returns:
            How it went, for people.

        Raises:
            UnsupportedModelError: they differ.
        """
        with torch.no_grad():
            proofs = [
                prove(self.form, self.compute, self.original, arguments)
                for arguments in self.calls.values()
            ]
        if failures := [proof.failure for proof in proofs if proof.failure]:
            raise UnsupportedModelError(
                f"{self.name} loops over the tokens and was taken for {self.form.name}, but it "
                f"{failures[0]}. Such a loop is unrolled while it is traced, so that the graph "
                "would be wrong for longer inputs; only loops that are known can be exported"
            )
        error = max(proof.max_error for proof in proofs)
        longest = max(proof.longest for proof in proofs)
        return (
            f"{self.name} loops over the tokens and is exported as a Scan: it is {self.form.name}, "
            f"as was shown at up to {longest} tokens (largest error {error:.1e})"
        )


def prove_loops(sites: Sequence[LoopSite]) -> list[str]:
    """Prove every loop that was traced as something else, and say so.

    Raises:
        UnsupportedModelError: one differs from what it was taken for.
    """
    return list(dict.fromkeys(site.prove() for site in sites if site.calls))


@contextmanager
def replaced_loops(model: nn.Module) -> Iterator[list[LoopSite]]:
    """Inside, functions of ``model`` that may have a known form are traced as that.

    Prove them afterwards with ``prove_loops``.
    """
    with ExitStack() as undo:
        sites = [*_replace_functions(model, undo), *_replace_modules(model, undo)]
        yield sites


def _replace_functions(model: nn.Module, undo: ExitStack) -> Iterator[LoopSite]:
    """Functions that the modules' ``forward`` finds by name beside it."""
    spaces = {}
    for module in model.modules():
        forward = inspect.unwrap(type(module).forward)
        if isinstance(forward, FunctionType):
            spaces[id(forward.__globals__)] = forward.__globals__
    for space in spaces.values():
        for name, function in list(space.items()):
            form = _form(function) if isinstance(function, FunctionType) else None
            if form is not None:
                site = LoopSite(name, function, form, form.compute)
                undo.callback(space.__setitem__, name, function)
                space[name] = functools.update_wrapper(_caller(site), function)
                yield site


def _replace_modules(model: nn.Module, undo: ExitStack) -> Iterator[LoopSite]:
    """Modules that loop in their own ``forward``."""
    for module in model.modules():
        for form in FORMS:
            if not form.attributes or not all(hasattr(module, a) for a in form.attributes):
                continue
            if not form.parameters <= set(inspect.signature(module.forward).parameters):
                continue
            compute = functools.partial(form.compute, module)
            site = LoopSite(type(module).__name__, module.forward, form, compute)
            previous = module.__dict__.get("forward")
            undo.callback(_restore, module, previous)
            module.forward = functools.update_wrapper(_caller(site), site.original)
            yield site


def _form(function: FunctionType) -> LoopForm | None:
    names = set(inspect.signature(function).parameters)
    return next((f for f in FORMS if not f.attributes and f.parameters <= names), None)


def _caller(site: LoopSite) -> Callable[..., Any]:
    """A plain function, which tracers and decorators expect."""

    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the function's own
        return site(*args, **kwargs)

    return call


def _restore(module: nn.Module, previous: object) -> None:
    if previous is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = previous
