"""Eager PyTorch on the bundle's source; imports torch when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_export.benchmark.cases import Case
from moe_export.benchmark.contenders import Run
from moe_export.errors import EnvironmentLacksError, UsageError
from moe_export.package.bundle import Bundle
from moe_export.plan import BuildPlan
from moe_export.runners.arrays import Array


class EagerContender:
    """The source in eager PyTorch, float32, as the bundle was compared with.

    Args:
        bundle: Gives the example inputs, and says whether there is a cache.
        source: As ``build`` takes it.
        factory: Builds the model, where the source is weights alone.
        trust: The source may run its own code while it is loaded.
        threads: Threads inside an operator.

    Raises:
        UsageError: the source does not exist, or takes other inputs than the bundle.
        UnsupportedModelError: it cannot be loaded faithfully.
        EnvironmentLacksError: torch is not installed.
    """

    def __init__(
        self, bundle: Bundle, source: str, *, factory: str | None, trust: bool, threads: int
    ) -> None:
        try:
            import torch

            from moe_export.sources.source import load_source
        except ModuleNotFoundError as error:
            raise EnvironmentLacksError(
                f"--against needs {error.name}: pip install 'moe-export[export,hf]'"
            ) from error
        torch.set_num_threads(threads)
        self._torch = torch
        cached = bundle.manifest.generation is not None
        example = None if cached else bundle.folder / "example" / "inputs.npz"
        plan = BuildPlan(
            output=Path(), inputs_file=example, factory=factory, trust=trust, with_past=cached
        )
        self._loaded = load_source(source, plan)
        taken = [spec["name"] for spec in bundle.manifest.inputs]
        if unknown := set(taken) ^ set(self._loaded.inputs):
            raise UsageError(
                f"{source} takes {', '.join(self._loaded.inputs)} and the bundle "
                f"{', '.join(taken)}: {', '.join(sorted(unknown))} differ. Is it the bundle's "
                "source?"
            )

    def prepare(self, case: Case, index: int) -> Run:
        """See ``Contender``; each run gets a cache of its own, since eager's grows."""
        torch, loaded = self._torch, self._loaded
        given = {**case.inputs[index], **case.cache}
        tensors = {name: torch.tensor(array) for name, array in given.items()}

        def named(outputs: Mapping[str, Any]) -> dict[str, Array]:
            return {name: tensor.numpy() for name, tensor in outputs.items()}

        if not case.cache:

            def run() -> Mapping[str, Array]:
                with torch.inference_mode():
                    return named(loaded.run(tensors))

            return run

        from moe_export.sources.past import EagerDecoder, GenerativeModel

        assert isinstance(loaded, GenerativeModel)  # loaded with its cache
        others, cache = loaded.split(tensors)
        decoder = EagerDecoder(loaded.model, cache)

        def step() -> Mapping[str, Array]:
            with torch.inference_mode():
                return named(decoder.step(others))

        return step
