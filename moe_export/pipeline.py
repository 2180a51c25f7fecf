"""The pipeline: each stage is a function from one record to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_export.capture.precision import source_dtype
from moe_export.capture.stage import capture
from moe_export.engine.environment import EngineEnvironment, find_environment
from moe_export.engine.signature import graph_signature
from moe_export.engine.stage import graph_inputs, make_engine
from moe_export.errors import (
    BundleError,
    EnvironmentLacksError,
    ParityError,
    UnsupportedModelError,
    UsageError,
)
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
from moe_export.replay.compare import replay
from moe_export.runners import gpu
from moe_export.runners.fingerprint import EngineFingerprint
from moe_export.runners.library import find_libraries, ort_library_path
from moe_export.runners.onnxruntime import OnnxRuntimeRunner
from moe_export.sources.file_backed import stored_bytes, weights_in_files
from moe_export.sources.model import LoadedModel, restore_dtypes, weight_bytes
from moe_export.sources.past import GenerativeModel
from moe_export.sources.source import load_module, load_source
from moe_export.verify.example import record_example
from moe_export.verify.graph import verify_graph
from moe_export.verify.keep_layers import find_kept_layers, mix
from moe_export.verify.quantization import measure_quantization, run_eager
from moe_export.verify.report import ParityReport
from moe_export.verify.stage import verify

if TYPE_CHECKING:
    from torch import nn

    from moe_export.sources.inputs import ExampleInputs


# Failures that an error lists; parity.json has all.
_MOST_FAILURES = 10
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
        target: ``cpu``, ``portable``, ``cuda``, ``tensorrt-rtx`` or ``tensorrt``.
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
    written = int(float32_bytes * _SHARES[plan.expert_weights])
    if plan.runs_on_gpu:
        # The graph's weights, the engine that holds them again, and the float32 graphs that are
        # compared: one as it is, one with the numbers that rounded weights stand for.
        return written * (2 if plan.builds_engine else 1) + 2 * float32_bytes * plan.verify
    beside = float32_bytes if plan.verify and plan.expert_weights != "fp32" else 0
    return beside + written


def build_loaded(loaded: LoadedModel, plan: BuildPlan, progress: Progress) -> Bundle:
    """The stages after ``load``."""
    write.check_room(plan.output, _least_bytes(weight_bytes(loaded.model), plan))
    plan = _with_dtype(plan, loaded, progress)
    environment, libraries = _find_environment(plan), find_libraries(plan)
    recognition = recognize_layers(loaded, progress, keep_going=plan.keep_going)
    if recognition.refusals:
        raise UnsupportedModelError(list_refusals(loaded.model, recognition))
    progress.stage("capture")
    captured = capture(loaded, recognition.blocks, plan, progress)
    progress.stage("lower")
    lowered = lower(captured, plan.dtype or "fp32", cache_names(loaded))
    progress.stage("optimize")
    lowered = optimize(lowered, plan, progress)
    with write.staged(plan.output, overwrite=plan.overwrite) as folder:
        report: ParityReport | None = None
        engine: EngineFingerprint | None = None
        if plan.runs_on_gpu:
            packed, report = _write_gpu_model(loaded, lowered, folder, plan, progress)
        else:
            library = libraries[0] if libraries else None
            packed, report = _write_model(loaded, lowered, folder, plan, library, progress)
        if environment is not None:
            engine = _build_engine(loaded, packed, plan, environment, progress)
        progress.stage("package")
        manifest = _package(loaded, packed, plan, report, libraries, progress, engine)
        if plan.runs_on_gpu and report is not None and report.passed:
            manifest = _compare_here(folder, manifest, progress)
    if report is not None and not report.passed:
        raise ParityError(_failure(report, plan))
    bundle = Bundle(plan.output, manifest)
    if manifest.parity["status"] == "failed":
        listed = "\n  ".join(bundle.parity()["device"]["failures"][:_MOST_FAILURES])
        raise ParityError(
            f"the bundle does not compute on this GPU what eager does:\n  {listed}\n"
            f"{plan.output} is kept for inspection and marked unverified"
        )
    return bundle


def _compare_here(folder: Path, manifest: Manifest, progress: Progress) -> Manifest:
    """Compare a bundle for GPUs on this machine's, if it has one that runs the bundle."""
    if gpu.compute_capability() is None:
        return manifest
    progress.stage("compare on the GPU")
    try:
        found = replay(Bundle(folder, manifest))
    except (EnvironmentLacksError, BundleError) as error:
        progress.remark(f"what this GPU computes was not compared: {error}")
        return write.rewrite_manifest(folder, replace(manifest, remarks=list(progress.remarks)))
    return write.record_replay(folder, manifest, found.to_json())


def _find_environment(plan: BuildPlan) -> EngineEnvironment | None:
    return find_environment(plan) if plan.builds_engine else None


def _with_dtype(plan: BuildPlan, loaded: LoadedModel, progress: Progress) -> BuildPlan:
    """The plan with the type of the activations; what float32 means on a GPU is said."""
    settled = plan.with_dtype(source_dtype(loaded))
    if plan.runs_on_gpu and plan.dtype is None and settled.dtype == "fp32":
        progress.remark(
            "the source is in float32, and so is the bundle: --dtype bf16 or fp16 rounds weights "
            "and activations to half the bytes"
        )
    return settled


def cache_names(loaded: LoadedModel) -> tuple[str, ...]:
    """Inputs and outputs that are a key/value cache."""
    caches = loaded.spec.caches if isinstance(loaded, GenerativeModel) else ()
    return tuple(name for cache in caches for name in (cache.past, cache.present))


def _write_gpu_model(
    loaded: LoadedModel,
    lowered: LoweredModel,
    folder: Path,
    plan: BuildPlan,
    progress: Progress,
) -> tuple[PackedModel, ParityReport | None]:
    """As ``_write_model``, for GPUs: parity is that of the graph, on the CPU."""
    progress.stage("quantize")
    smaller = quantize(lowered, plan, progress)
    progress.stage("pack")
    packed = pack(smaller, folder, plan.target, native=plan.moe == "native")
    if not plan.verify:
        return packed, None
    progress.stage("verify")
    return packed, verify_graph(loaded, lowered, packed, ort_library_path(), plan, progress)


def _build_engine(
    loaded: LoadedModel,
    packed: PackedModel,
    plan: BuildPlan,
    environment: EngineEnvironment,
    progress: Progress,
) -> EngineFingerprint:
    progress.stage("engine")
    inputs = graph_inputs(packed.graph, {n: tuple(t.shape) for n, t in loaded.inputs.items()})
    given = loaded.kind != "huggingface" or bool(plan.inputs or plan.inputs_file)
    return make_engine(packed, inputs, plan, environment, progress, example_given=given)


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
    libraries: Sequence[Path],
    progress: Progress,
    engine: EngineFingerprint | None = None,
) -> Manifest:
    folder = packed.folder
    if plan.runs_on_gpu:
        inputs, outputs = graph_signature(packed.graph)
    else:
        runner = OnnxRuntimeRunner(packed.path, libraries[0] if libraries else None)
        inputs, outputs = runner.inputs, runner.outputs
    expected = {name: t.numpy() for name, t in loaded.run(loaded.inputs).items()}
    write.write_example(folder, {n: t.numpy() for n, t in loaded.inputs.items()}, expected)
    if report is not None:
        write.write_parity(folder, report.to_json())
        record, routing = record_example(loaded, packed.lowered.layers, plan, report, progress)
        record.write(folder, routing)
    if libraries:
        write.copy_libraries(folder, libraries)
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
        parity=_summary(report, plan),
        batch_coupled=report.batch_coupled if report else None,
        telemetry=[record.to_json() for record in packed.lowered.telemetry],
        generation=_finish_generation(loaded, packed),
        remarks=list(progress.remarks),
        engine=engine,
    )


def _summary(report: ParityReport | None, plan: BuildPlan) -> dict[str, Any]:
    """What the manifest says of parity."""
    if report is None:
        return {"status": "skipped", "reason": "the build was told --no-verify"}
    summary = report.summary()
    if plan.runs_on_gpu and report.passed:
        return {**summary, "status": "graph"}
    return summary


def _finish_generation(loaded: LoadedModel, packed: PackedModel) -> GenerationSpec | None:
    """How the bundle generates, with the checkpoint's tokenizer files beside it."""
    if not isinstance(loaded, GenerativeModel):
        return None
    copied = copy_text_files(loaded.folder, packed.folder) if loaded.folder else ()
    tokenizer = TOKENIZER_FILE if TOKENIZER_FILE in copied else None
    types = {v.name: v.dtype.numpy().name for v in packed.graph.graph.inputs if v.dtype is not None}
    caches = tuple(replace(cache, dtype=types[cache.past]) for cache in loaded.spec.caches)
    return replace(loaded.spec, tokenizer=tokenizer, caches=caches)


def _failure(report: ParityReport, plan: BuildPlan) -> str:
    first = report.first_diverging_layer
    where = f"first diverging layer: {first or '<root>'}" if first is not None else (
        "every MoE layer agrees: the difference arises outside them"
    )  # fmt: skip
    listed = "\n  ".join(report.failures[:_MOST_FAILURES])
    return (
        f"the exported model differs from eager ({where}):\n  {listed}\n"
        f"{plan.output} is kept for inspection and marked unverified; parity.json has all numbers"
    )
