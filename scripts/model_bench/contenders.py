"""Who runs the model: bundles, eager PyTorch, and what transformers itself exports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from model_bench.model import as_arrays, load_checkpoint, make_cache, named_tensors
from moe_export.benchmark.cases import Case
from moe_export.benchmark.contenders import BundleContender, Contender, Run
from moe_export.capture.quiet import quiet_exporters
from moe_export.package.bundle import load
from moe_export.pipeline import build_source
from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress

# What the exporters trace with: no two sizes of the model are the same.
_EXAMPLE_TOKENS = 11


@dataclass(frozen=True)
class Entry:
    """A contender that is not loaded yet.

    Attributes:
        name: For tables.
        load: Makes it ready for one case.
        ours: Whether it is this library.
    """

    name: str
    load: Callable[[Case], Contender]
    ours: bool = False


def bundle_entry(folder: Path, output: Path, weights: str, threads: int) -> Entry:
    """Build a bundle with such weights, unless it is there; eager, which is timed, compares it."""
    if not output.exists():
        plan = BuildPlan(output=output, with_past=True, verify=False, weights=weights)  # type: ignore[arg-type] # checked there
        build_source(str(folder), plan, SilentProgress())

    def prepare(_case: Case) -> Contender:
        bundle = load(output, num_threads=threads)
        return BundleContender(bundle.runner, bundle.manifest.generation)

    return Entry(f"moe-export {weights}", prepare, ours=True)


def eager_entry(folder: Path) -> Entry:
    """Transformers in eager PyTorch, with the experts' implementation that it chooses itself."""
    return Entry("transformers eager", lambda _case: _Eager(load_checkpoint(folder)))


def onnx_entry(folder: Path, output: Path, threads: int) -> Entry:
    """What transformers' exporter writes for ONNX Runtime: a graph for prompts, one for steps."""
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    if not output.exists():
        config = OnnxConfig(dynamic=True, ort_fusions="cpu")
        with quiet_exporters():
            exported = OnnxExporter().export_for_generation(
                load_checkpoint(folder), _example(), config
            )
        _save(exported, output)
    return Entry("transformers' ONNX", lambda case: _Exported(output, _stage(case), threads))


def openvino_entry(folder: Path, output: Path, threads: int) -> Entry:
    """What transformers' exporter writes for OpenVINO: one graph that keeps the cache itself."""
    from transformers.exporters.exporter_openvino import OpenVINOConfig, OpenVINOExporter

    if not output.exists():
        config = OpenVINOConfig(dynamic=True)
        with quiet_exporters():
            exported = OpenVINOExporter().export_for_generation(
                load_checkpoint(folder), _example(), config, multi_token_decode=True
            )
        del exported.components["prefill"]  # the other one takes prompts too
        _save(exported, output)
    return Entry("OpenVINO", lambda case: _OpenVino(output, threads, case))


def has_openvino() -> bool:
    """Whether OpenVINO is installed."""
    return find_spec("openvino") is not None


def _save(exported: Any, output: Path) -> None:  # noqa: ANN401 - an ExportedModel
    """Save it whole or not at all: what is there is taken again."""
    partial = output.with_name(f"{output.name}.partial")
    exported.save_pretrained(partial)
    partial.rename(output)


def _example() -> dict[str, Any]:
    ids = torch.arange(2, 2 + 2 * _EXAMPLE_TOKENS).reshape(2, _EXAMPLE_TOKENS)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _stage(case: Case) -> str:
    return "decode" if any(array.shape[2] for array in case.cache.values()) else "prefill"


class _Eager:
    def __init__(self, model: Any) -> None:  # noqa: ANN401 - a transformers model
        self._model = model

    def prepare(self, case: Case, index: int) -> Run:
        inputs, cache = named_tensors(case, index), make_cache(case)

        def run() -> Mapping[str, Any]:
            with torch.inference_mode():
                return as_arrays(
                    self._model(**inputs, past_key_values=cache, use_cache=True).logits
                )

        return run


class _Exported:
    """One of transformers' graphs in ONNX Runtime, inputs and outputs bound in place."""

    def __init__(self, folder: Path, stage: str, threads: int) -> None:
        import onnxruntime
        from transformers.exporters.base import ExportedModel
        from transformers.exporters.runners.runner_onnx import OnnxModelRunner

        component = ExportedModel.from_pretrained(folder).components[stage]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._run = OnnxModelRunner.from_program(
            component.program, component.metadata, device="cpu", session_options=options
        )
        self._takes_cache = stage == "decode"

    def prepare(self, case: Case, index: int) -> Run:
        inputs: dict[str, Any] = {**named_tensors(case, index)}
        if self._takes_cache:
            inputs["past_key_values"] = make_cache(case)
        return lambda: as_arrays(self._run(**inputs).logits)


class _OpenVino:
    """transformers' stateful graph in OpenVINO, in float32 as all others."""

    def __init__(self, folder: Path, threads: int, case: Case) -> None:
        from transformers.exporters.base import ExportedModel
        from transformers.exporters.runners.runner_openvino import OpenVINOModelRunner

        component = ExportedModel.from_pretrained(folder).components["decode"]
        config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        self._run = OpenVINOModelRunner.from_program(
            component.program, component.metadata, device="cpu", config=config
        )
        self._saved = self._fill(case)

    def _fill(self, case: Case) -> dict[str, Any]:
        """The state behind the case's cache, by the state's name; copies."""
        import openvino

        self._run.request.reset_state()
        states = {state.name: state for state in self._run.request.query_state()}
        layers = list(case.cache.values())
        saved = {}
        for name in states:
            layer, kind = _layer_of(name)
            saved[name] = openvino.Tensor(layers[2 * layer + kind].copy())
        return saved

    def prepare(self, case: Case, index: int) -> Run:
        from transformers.exporters.utils import openvino_feed

        for state in self._run.request.query_state():
            state.state = self._saved[state.name]
        # Not through the runner: it looks for the cache among the outputs, where none is.
        feed = openvino_feed(self._run.compiled_model, named_tensors(case, index))
        return lambda: {"logits": self._run.request.infer(feed, share_inputs=True)[0]}


def _layer_of(name: str) -> tuple[int, int]:
    """Layer's number and 0 for keys, 1 for values, from the name of a state."""
    import re

    match = re.search(r"layers\.(\d+)\.(keys|values)", name)
    if match is None:
        raise ValueError(f"OpenVINO's state {name!r} is no layer's keys or values")
    return int(match[1]), int(match[2] == "values")
