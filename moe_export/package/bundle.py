"""Load a bundle and run it, without PyTorch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from moe_export.errors import BundleError, EnvironmentLacksError, UsageError
from moe_export.generation.decoder import run_prompts
from moe_export.generation.generate import GenerateOptions, start_stream
from moe_export.generation.prompts import InputIds, Prompts, make_prompts
from moe_export.generation.spec import ATTENTION_MASK, INPUT_IDS, GenerationSpec
from moe_export.package.manifest import Manifest, check_files, read_manifest
from moe_export.runners import gpu
from moe_export.runners.arrays import Array
from moe_export.runners.engine import EngineRunner
from moe_export.runners.library import LIBRARY_NAME, ort_library_path
from moe_export.runners.onnxruntime import OnnxRuntimeRunner
from moe_export.runners.providers import DeviceKind
from moe_export.runners.tensorrt import check_machine, open_engine
from moe_export.telemetry.expert_load import ExpertLoad
from moe_export.telemetry.record import LayerTelemetry

MODEL_NAME = "model.onnx"
PARITY_NAME = "parity.json"
# What a prompt is; the rest that a graph with a cache takes follows from it.
_PROMPT_INPUTS = {INPUT_IDS, ATTENTION_MASK}

# What there is to say of a bundle by its parity's status.
_UNVERIFIED = {
    "graph": "its graph agrees with eager PyTorch on a CPU, and what the GPU computes was never "
    "compared: moe-export verify does",
    "failed": "it failed its comparison with eager PyTorch",
    "skipped": "it was never compared with eager PyTorch",
}


class UnverifiedBundleWarning(UserWarning):
    """The bundle failed its parity check or was never compared with eager."""


class SlowBodyWarning(UserWarning):
    """The MoE layers run in standard operators instead of this package's kernels."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        folder: Where it is.
        manifest: What it says of itself.
        trust: Use the op library inside the bundle instead of the installed one.
        num_threads: Threads inside an operator; 0 for ONNX Runtime's choice.
    """

    folder: Path
    manifest: Manifest
    trust: bool = False
    num_threads: int = 0

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once.

        Args:
            inputs: Arrays by input name; ``manifest.inputs`` lists types and shapes.

        Returns:
            Arrays by output name.

        Raises:
            UsageError: an input is missing, unknown, or of another type or shape.
        """
        if self.manifest.engine is not None:
            return self._engine.run(inputs)
        return self.runner.run(inputs)

    @cached_property
    def _engine(self) -> EngineRunner:
        """The engine, opened at the first run."""
        if self.manifest.engine is None:
            raise BundleError(f"{self.folder} holds no engine")
        tensors = (*self.manifest.inputs, *self.manifest.outputs)
        shapes = {tensor["name"]: tuple(tensor["shape"]) for tensor in tensors}
        return open_engine(self.folder, self.manifest.engine, shapes)

    def expert_load(self, inputs: Mapping[str, Array]) -> tuple[ExpertLoad, ...]:
        """Run the model once and see how each MoE layer spreads its tokens.

        A bundle that was built without telemetry gets its outputs in memory, which needs onnx-ir.

        Args:
            inputs: As for ``run``; for a bundle with a key/value cache ``input_ids`` will do, with
                an ``attention_mask`` where rows are padded.

        Returns:
            One for each call of a layer, in the order they run.

        Raises:
            UsageError: as for ``run``; or the bundle holds an engine.
            EnvironmentLacksError: the bundle has no telemetry and onnx-ir is not installed.
        """
        runner, records = self._telemetry
        if self.manifest.generation and INPUT_IDS in inputs and {*inputs} <= _PROMPT_INPUTS:
            outputs = run_prompts(runner, self.manifest.generation, inputs)
        else:
            outputs = runner.run(inputs)
        return tuple(ExpertLoad.read(record, outputs) for record in records)

    @cached_property
    def _telemetry(self) -> tuple[OnnxRuntimeRunner, tuple[LayerTelemetry, ...]]:
        """A session that counts, and its outputs by layer."""
        if self.manifest.engine is not None:
            raise UsageError(
                f"{self.folder} holds an engine, whose experts' load is not counted: count with a "
                "bundle of --target cpu"
            )
        if self.manifest.telemetry:
            return self.runner, tuple(map(LayerTelemetry.from_json, self.manifest.telemetry))
        try:
            from moe_export.telemetry.outputs import extend_file
        except ModuleNotFoundError as error:
            raise EnvironmentLacksError(
                f"{self.folder} was built without --telemetry, and adding it needs {error.name}: "
                "build with --telemetry, or pip install onnx-ir"
            ) from error
        graph, records = extend_file(self.folder / MODEL_NAME)
        return self.open_graph(graph), records

    def open_graph(self, graph: bytes) -> OnnxRuntimeRunner:
        """A session of another graph that reads this bundle's data, such as one with more outputs.

        Args:
            graph: An ONNX file whose external data is the bundle's.
        """
        return OnnxRuntimeRunner(
            graph,
            self._library(),
            device=self._device,
            num_threads=self.num_threads,
            data_folder=self.folder,
        )

    def generate(
        self,
        input_ids: InputIds,
        attention_mask: Array | Sequence[Sequence[int]] | None = None,
        **options: Any,  # noqa: ANN401 - fields of GenerateOptions
    ) -> Array:
        """Continue prompts: one run for the prompt, then one for each new token.

        Args:
            input_ids: ``[batch, tokens]``, or rows of different lengths, which are padded on the
                left.
            attention_mask: ``[batch, tokens]``, 0 for padding, which must be on the left.
            **options: Fields of ``GenerateOptions``, such as ``max_new_tokens``, ``do_sample``,
                ``temperature``, ``top_k``, ``top_p``, ``eos_token_id`` or ``seed``.

        Returns:
            ``[batch, tokens + new]`` int64, the prompts with the new tokens behind them; a row that
            ended before the longest is filled with the padding's id.

        Raises:
            UsageError: the bundle has no cache, or an argument is wrong.
        """
        prompts = make_prompts(input_ids, attention_mask, self._generation)
        new = list(self._start(prompts, options))
        return np.concatenate([prompts.ids, np.stack(new, axis=1)], axis=1)

    def stream(
        self,
        input_ids: InputIds,
        attention_mask: Array | Sequence[Sequence[int]] | None = None,
        **options: Any,  # noqa: ANN401 - fields of GenerateOptions
    ) -> Iterator[Array]:
        """As ``generate``, token by token.

        Returns:
            An iterator over ``[batch]`` int64, the next token of every row.

        Raises:
            UsageError: the bundle has no cache, or an argument is wrong.
        """
        return self._start(make_prompts(input_ids, attention_mask, self._generation), options)

    def _start(self, prompts: Prompts, options: Mapping[str, Any]) -> Iterator[Array]:
        # A bundle that was not compared may have tokens that compete: its prompts are run whole.
        coupled = self.manifest.batch_coupled is not False
        read = GenerateOptions.read(options)
        return start_stream(self.runner, self._generation, prompts, read, batch_coupled=coupled)

    @property
    def _generation(self) -> GenerationSpec:
        if self.manifest.generation is None:
            raise UsageError(
                f"{self.folder} has no key/value cache, so that it cannot generate: build it again "
                "with --with-past (with_past=True)"
            )
        return self.manifest.generation

    def load_tokenizer(self) -> Any:  # noqa: ANN401 - an optional package
        """The source's tokenizer, a ``tokenizers.Tokenizer``.

        Raises:
            UsageError: the bundle has none.
            EnvironmentLacksError: the package is not installed.
        """
        name = self._generation.tokenizer
        if name is None:
            raise UsageError(f"{self.folder} has no tokenizer.json: its source had none")
        try:
            import tokenizers
        except ModuleNotFoundError as error:
            raise EnvironmentLacksError(
                "reading tokenizer.json needs tokenizers: pip install 'moe-export[text]'"
            ) from error
        return tokenizers.Tokenizer.from_file(str(self.folder / name))

    @cached_property
    def runner(self) -> OnnxRuntimeRunner:
        """The session, opened at the first use."""
        return self.open_runner()

    def open_runner(self, *, profile: Path | None = None) -> OnnxRuntimeRunner:
        """A session of its own; ``profile`` as for ``OnnxRuntimeRunner``.

        Raises:
            UsageError: the bundle holds an engine, which ONNX Runtime does not run.
        """
        if self.manifest.engine is not None:
            raise UsageError(
                f"{self.folder} holds an engine for {self.manifest.engine.flavor}, which runs but "
                "does nothing else yet: generating, timing and counting take a bundle for cpu"
            )
        return OnnxRuntimeRunner(
            self.folder / MODEL_NAME,
            self._library(),
            device=self._device,
            num_threads=self.num_threads,
            profile=profile,
        )

    @property
    def _device(self) -> DeviceKind:
        return "cuda" if self.manifest.target == "cuda" else "cpu"

    @property
    def device_name(self) -> str:
        """Where the bundle runs, for people."""
        if self._device == "cpu" and self.manifest.engine is None:
            return "the CPU, in ONNX Runtime"
        runtime = self.manifest.engine.flavor if self.manifest.engine else "ONNX Runtime"
        return f"a GPU of compute capability {gpu.compute_capability()}, in {runtime}"

    @property
    def verified(self) -> bool:
        """Whether the bundle passed its comparison with eager."""
        return bool(self.manifest.parity["status"] == "passed")

    def parity(self) -> dict[str, Any]:
        """The full parity report; empty if it was skipped."""
        path = self.folder / PARITY_NAME
        report: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return report

    def _library(self) -> Path | None:
        if self.trust and (self.folder / "lib" / LIBRARY_NAME).is_file():
            return self.folder / "lib" / LIBRARY_NAME
        try:
            return ort_library_path()
        except EnvironmentLacksError:
            if self.manifest.target != "portable":
                raise
            warnings.warn(
                "the op library is not installed: the MoE layers run in standard operators, slowly",
                SlowBodyWarning,
                stacklevel=2,
            )
            return None


def load(folder: str | Path, *, trust: bool = False, num_threads: int = 0) -> Bundle:
    """Open a bundle.

    Args:
        folder: The bundle.
        trust: Run the op library that the bundle brings; without it the installed one is used.
        num_threads: Threads inside an operator; 0 for ONNX Runtime's choice.

    Raises:
        BundleError: a file is missing, changed, or outside the bundle; or its engine is for another
            TensorRT or GPU than are here.
    """
    path = Path(folder)
    manifest = read_manifest(path)
    check_files(path, manifest)
    if MODEL_NAME not in manifest.files:
        raise BundleError(f"the manifest of {path} lists no {MODEL_NAME}")
    if manifest.engine is not None:
        check_machine(manifest.engine)
    status = manifest.parity["status"]
    if status != "passed":
        reason = manifest.parity.get("reason")
        why = f" ({reason})" if reason else ""
        warnings.warn(
            f"{path} is not verified: {_UNVERIFIED[status]}{why}",
            UnverifiedBundleWarning,
            stacklevel=2,
        )
    return Bundle(path, manifest, trust, num_threads)
