"""What is timed: the bundle, and eager PyTorch where its source is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from moe_export.benchmark.cases import Case
from moe_export.generation.spec import GenerationSpec
from moe_export.runners.arrays import Array
from moe_export.runners.onnxruntime import OnnxRuntimeRunner

Run = Callable[[], Mapping[str, Array]]


class Contender(Protocol):
    """One way to run a model."""

    def prepare(self, case: Case, index: int) -> Run:
        """Everything but the run itself, for the case's set of inputs ``index``.

        Returns:
            A function for one run that returns outputs by name; the cache may be left out.
        """


class BundleContender:
    """A bundle as ``run`` runs it, or with a cache as ``generate`` does.

    Args:
        runner: Its session.
        spec: Its cache, if it has one; the cache stays in the runtime's memory.
    """

    def __init__(self, runner: OnnxRuntimeRunner, spec: GenerationSpec | None) -> None:
        self._runner, self._spec = runner, spec
        self._kept: dict[str, Mapping[str, Any]] = {}

    def prepare(self, case: Case, index: int) -> Run:
        """See ``Contender``."""
        inputs, spec = case.inputs[index], self._spec
        if spec is None:
            return lambda: self._runner.run(inputs)
        if case.name not in self._kept:
            values = {name: self._runner.to_value(array) for name, array in case.cache.items()}
            self._kept[case.name] = values
        kept, presents = self._kept[case.name], [c.present for c in spec.caches]
        return lambda: self._runner.run_keeping(inputs, kept, presents)[0]
