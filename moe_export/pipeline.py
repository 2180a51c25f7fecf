"""The pipeline: each stage is a function from one record to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_export.capture.precision import source_dtype
from moe_export.capture.stage import capture
from moe_export.engine.environment import EngineEnvironment, find_environment
from moe_export.engine.signature import graph_signature
from moe_export.engine.stage import graph_inputs, make_engine
from moe_export.errors import ParityError, UnsupportedModelError, UsageError
from moe_export.generation.spec import GenerationSpec
from moe_export.lower.stage import LoweredModel, lower
from moe_export.optimize.stage import optimize
from moe_export.pack.model_file import (
    EXACT_NAME,
    MODEL_NAME,
    ROUNDED_NAME,
    PackedModel,
    pack,
    write_graph,
)
from moe_export.pack.stored_layers import stored_layers
from moe_export.package import write
from moe_export.package.bundle import Bundle
from moe_export.package.manifest import Manifest
from moe_export.package.text_files import TOKENIZER_FILE, copy_text_files
from moe_export.plan import BuildPlan, Target, Weights
from moe_export.progress import Progress, SilentProgress
from moe_export.quantize.stage import quantize
from moe_export.recognize.stage import Recognition, recognize
from moe_export.refusals import list_refusals
from moe_export.runners import gpu
from moe_export.runners.fingerprint import EngineFingerprint
from moe_export.runners.library import ort_library_path, plugin_library_path
from moe_export.runners.onnxruntime import OnnxRuntimeRunner
from moe_export.sources.file_backed import stored_bytes, weights_in_files
from moe_export.sources.model import LoadedModel, restore_dtypes, weight_bytes
from moe_export.sources.past import GenerativeModel
from moe_export.sources.source import load_module, load_source
from moe_export.verify.keep_layers import find_kept_layers, mix
from moe_export.verify.quantization import measure_quantization, run_eager
from moe_export.verify.report import ParityReport
from moe_export.verify.stage import verify

if TYPE_CHECKING:
    from torch import nn

    from moe_export.sources.inputs import ExampleInputs


# Bytes of a weight, at the least, over those of a float32.
_SHARES: Mapping[Weights, float] = {
    "fp32": 1,
    "fp16": 1 / 2,
    "bf16": 1 / 2,
    "int8": 1 / 4,
    "int4": 1 / 8,
    "fp8": 1 / 4,
    "mxfp4": 1 / 8,
    "source": 1 / 8,
}


def build_source(source: str, plan: BuildPlan, progress: Progress) -> Bundle:
    """Export what ``source`` names; see ``build``."""
    plan.check_output()
    _find_environment(plan)
    write.check_room(plan.output, _least_bytes(stored_bytes(Path(source)), plan))
    progress.stage("load")
    with weights_in_files(plan.output.parent):
        return build_loaded(load_source(source, plan), plan, progress)


def build(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    *,
    output: str | Path,
    target: Target = "cpu",
    progress: Progress | None = None,
    **options: Any,  # noqa: ANN401 - fields of BuildPlan
) -> Bundle:
    """Export a module in memory to a verified bundle.

    Args:
        model: The module; it is evaluated in eval mode and float32 and left as it was.
        example_inputs: A tensor, a sequence of tensors in the order of ``forward``'s arguments, or
            tensors by name. Hugging Face causal models need none.
        output: Folder of the bundle.
        target: ``cpu``, ``portable``, ``tensorrt-rtx`` or ``tensorrt``.
        progress: Receives progress; nothing is printed without it.
        **options: Further fields of ``BuildPlan``, such as ``overwrite``, ``dynamic`` or
            ``weights``.

    Returns:
        The bundle, opened.

    Raises:
        UnsupportedModelError: the model has something that cannot be exported faithfully.
        ParityError: the result differs from eager; the bundle is kept, marked unverified.
        UsageError: an argument is wrong.
        EnvironmentLacksError: TensorRT, its plugins or a GPU are missing for the target.
    """
    plan = BuildPlan(output=Path(output), target=target, **options)
    if plan.factory is not None:
        raise UsageError("factory builds the model of a file with weights; here a model is given")
    plan.check_output()
    _find_environment(plan)
    training = model.training
    with weights_in_files(plan.output.parent):
        loaded = load_module(model, example_inputs, plan, source=type(model).__name__)
        try:
            return build_loaded(loaded, plan, progress or SilentProgress())
        finally:
            restore_dtypes(model, loaded.source_dtypes)
            model.train(training)


def _least_bytes(float32_bytes: int, plan: BuildPlan) -> int:
    """What a build writes at the least, with the float32 model that smaller weights need beside."""
    if plan.builds_engine:
        # The graph's weights, and the engine that holds them again.
        return 2 * int(float32_bytes * _SHARES[plan.expert_weights])
    beside = float32_bytes if plan.verify and plan.expert_weights != "fp32" else 0
    return beside + int(float32_bytes * _SHARES[plan.expert_weights])


def build_loaded(loaded: LoadedModel, plan: BuildPlan, progress: Progress) -> Bundle:
    """The stages after ``load``."""
    write.check_room(plan.output, _least_bytes(weight_bytes(loaded.model), plan))
    plan = _with_dtype(plan, loaded, progress)
    environment, library = _find_environment(plan), find_library(plan)
    recognition = recognize_layers(loaded, progress, keep_going=plan.keep_going)
    if recognition.refusals:
        raise UnsupportedModelError(list_refusals(loaded.model, recognition))
    progress.stage("capture")
    captured = capture(loaded, recognition.blocks, plan, progress)
    progress.stage("lower")
    lowered = lower(captured, plan.dtype or "fp32")
    progress.stage("optimize")
    lowered = optimize(lowered, plan, progress)
    with write.staged(plan.output, overwrite=plan.overwrite) as folder:
        report: ParityReport | None = None
        engine: EngineFingerprint | None = None
        if environment is not None:
            packed, engine = _write_engine(loaded, lowered, folder, plan, environment, progress)
        else:
            packed, report = _write_model(loaded, lowered, folder, plan, library, progress)
        progress.stage("package")
        manifest = _package(loaded, packed, plan, report, library, progress, engine)
    if report is not None and not report.passed:
        raise ParityError(_failure(report, plan))
    return Bundle(plan.output, manifest)


def find_library(plan: BuildPlan) -> Path | None:
    """The library that a bundle brings; None for a portable one.

    Raises:
        EnvironmentLacksError: it was not built.
    """
    if plan.builds_engine:
        return plugin_library_path()
    return ort_library_path() if plan.target == "cpu" else None


def _find_environment(plan: BuildPlan) -> EngineEnvironment | None:
    return find_environment(plan) if plan.builds_engine else None


def _with_dtype(plan: BuildPlan, loaded: LoadedModel, progress: Progress) -> BuildPlan:
    """The plan with the type of the activations; what float32 means for an engine is said."""
    settled = plan.with_dtype(source_dtype(loaded))
    if plan.builds_engine and plan.dtype is None and settled.dtype == "fp32":
        progress.remark(
            "the source is in float32, and so is the engine: --dtype bf16 or fp16 rounds weights "
            "and activations to half the bytes"
        )
    return settled


def _write_engine(
    loaded: LoadedModel,
    lowered: LoweredModel,
    folder: Path,
    plan: BuildPlan,
    environment: EngineEnvironment,
    progress: Progress,
) -> tuple[PackedModel, EngineFingerprint]:
    """The stages ``quantize``, ``pack`` and ``engine``."""
    progress.stage("quantize")
    smaller = quantize(lowered, plan, progress)
    progress.stage("pack")
    packed = pack(smaller, folder, plan.target, native=plan.moe == "native")
    progress.stage("engine")
    inputs = graph_inputs(packed.graph, {n: tuple(t.shape) for n, t in loaded.inputs.items()})
    given = loaded.kind != "huggingface" or bool(plan.inputs or plan.inputs_file)
    engine = make_engine(packed, inputs, plan, environment, progress, example_given=given)
    return packed, engine


def _write_model(
    loaded: LoadedModel,
    lowered: LoweredModel,
    folder: Path,
    plan: BuildPlan,
    library: Path | None,
    progress: Progress,
) -> tuple[PackedModel, ParityReport | None]:
    """The stages ``quantize``, ``pack`` and ``verify``."""
    if plan.expert_weights != "fp32":
        return _write_smaller(loaded, lowered, folder, plan, library, progress)
    progress.stage("pack")
    packed = pack(lowered, folder, plan.target)
    if not plan.verify:
        return packed, None
    progress.stage("verify")
    return packed, verify(loaded, packed, plan, library, progress)


def _write_smaller(
    loaded: LoadedModel,
    lowered: LoweredModel,
    folder: Path,
    plan: BuildPlan,
    library: Path | None,
    progress: Progress,
) -> tuple[PackedModel, ParityReport | None]:
    """As ``_write_model``, with smaller weights: parity is that of the float32 model beside it."""
    progress.stage("quantize")
    smaller = quantize(lowered, plan, progress)
    progress.stage("pack")
    packed = pack(smaller, folder, name=MODEL_NAME if plan.max_error is None else ROUNDED_NAME)
    if not plan.verify:
        return packed, None
    exact = pack(lowered, folder, name=EXACT_NAME)
    progress.stage("verify")
    report = verify(loaded, exact, plan, library, progress)
    cases = run_eager(loaded, exact, plan, library)
    kept: tuple[str, ...] = ()
    if plan.max_error is not None:
        kept = find_kept_layers(exact, packed, plan.max_error, library, cases, progress)
        mixed = quantize(lowered, plan, SilentProgress(), kept)
        rounded, packed = packed, PackedModel(folder, mixed, mix(exact, packed, kept))
        write_graph(packed)
        rounded.remove()
    found = measure_quantization(exact, packed, library, cases, plan, progress)
    exact.remove()
    found = replace(found, max_error=plan.max_error, kept=kept)
    return packed, report.with_quantization(found)


def recognize_layers(loaded: LoadedModel, progress: Progress, *, keep_going: bool) -> Recognition:
    """The stage ``recognize``, with what there is to say of the source and of each layer."""
    for remark in loaded.remarks:
        progress.remark(remark)
    progress.stage("recognize")
    plain = (loaded.plain or loaded) if isinstance(loaded, GenerativeModel) else loaded
    recognition = recognize(plain, progress, keep_going=keep_going)
    for block in recognition.blocks:
        for remark in block.remarks:
            text = f"{block.path or '<root>'}: {remark}"
            if text not in progress.remarks:
                progress.remark(text)
    return recognition


def _package(
    loaded: LoadedModel,
    packed: PackedModel,
    plan: BuildPlan,
    report: ParityReport | None,
    library: Path | None,
    progress: Progress,
    engine: EngineFingerprint | None = None,
) -> Manifest:
    folder = packed.folder
    if engine is None:
        runner = OnnxRuntimeRunner(packed.path, library)
        inputs, outputs = runner.inputs, runner.outputs
    else:
        inputs, outputs = graph_signature(packed.graph)
    expected = {name: t.numpy() for name, t in loaded.run(loaded.inputs).items()}
    write.write_example(folder, {n: t.numpy() for n, t in loaded.inputs.items()}, expected)
    if report is not None:
        write.write_parity(folder, report.to_json())
    if library is not None:
        write.copy_library(folder, library)
    stored = stored_layers(packed)
    return write.write_manifest(
        folder,
        target=plan.target,
        source={"name": loaded.source, "kind": loaded.kind, **loaded.description},
        inputs=inputs,
        outputs=outputs,
        layers=[
            {**layer.describe(), "weights": asdict(stored[layer.path])}
            for layer in packed.lowered.layers
        ],
        parity=report.summary() if report else _skipped(plan),
        batch_coupled=report.batch_coupled if report else None,
        telemetry=[record.to_json() for record in packed.lowered.telemetry],
        generation=_finish_generation(loaded, folder),
        remarks=list(progress.remarks),
        engine=engine,
    )


def _skipped(plan: BuildPlan) -> dict[str, str]:
    """Parity that was not looked at, and why."""
    if not plan.verify:
        return {"status": "skipped", "reason": "the build was told --no-verify"}
    if gpu.compute_capability() is None:
        reason = "its engine needs a GPU to run, and the machine that built it has none"
    else:
        reason = "this version runs engines and does not compare them yet"
    return {"status": "skipped", "reason": reason}


def _finish_generation(loaded: LoadedModel, folder: Path) -> GenerationSpec | None:
    """How the bundle generates, with the checkpoint's tokenizer files beside it."""
    if not isinstance(loaded, GenerativeModel):
        return None
    copied = copy_text_files(loaded.folder, folder) if loaded.folder else ()
    tokenizer = TOKENIZER_FILE if TOKENIZER_FILE in copied else None
    return replace(loaded.spec, tokenizer=tokenizer)


def _failure(report: ParityReport, plan: BuildPlan) -> str:
    first = report.first_diverging_layer
    where = f"first diverging layer: {first or '<root>'}" if first is not None else (
        "every MoE layer agrees: the difference arises outside them"
    )  # fmt: skip
    listed = "\n  ".join(report.failures[:10])
    return (
        f"the exported model differs from eager ({where}):\n  {listed}\n"
        f"{plan.output} is kept for inspection and marked unverified; parity.json has all numbers"
    )
