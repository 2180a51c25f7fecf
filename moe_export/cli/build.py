"""``moe-export build``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from moe_export.cli.console import StageProgress, stdout
from moe_export.cli.dry_run_table import draw_dry_run
from moe_export.cli.options import Output, common_options
from moe_export.cli.quantization_table import draw_quantization
from moe_export.cli.report import draw_engine, draw_layers, draw_parity, draw_verdict
from moe_export.errors import (
    EnvironmentLacksError,
    ParityError,
    UnsupportedModelError,
    UsageError,
)
from moe_export.package.manifest import read_manifest
from moe_export.plan import (
    DTYPES,
    MOE,
    TARGETS,
    WEIGHTS,
    AxisSpec,
    BuildPlan,
    InputSpec,
    parse_compute_capability,
)

# Where a dry run without a folder would write: beside what is here.
_NOWHERE = Path("bundle")


@click.command(epilog="Example: moe-export build model.pt -o bundle --trust --input x=4,64")
@click.argument("source")
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path),
              help="Folder of the bundle; not needed with --dry-run.")  # fmt: skip
@click.option("--target", type=click.Choice(TARGETS), default="cpu", show_default=True,
              help="cpu: ONNX Runtime with this package's kernels. portable: one file of standard "
                   "operators for any ONNX runtime. tensorrt-rtx, tensorrt: an engine with this "
                   "package's plugins. cuda: ONNX Runtime on a GPU with this package's "
                   "kernels.")  # fmt: skip
@click.option("--dtype", type=click.Choice(DTYPES),
              help="On GPUs, type of activations and of all weights but the experts'; that of "
                   "most of the checkpoint's weights if not given, so that float32 stays float32. "
                   "Other targets compute in float32.")  # fmt: skip
@click.option("--input", "inputs", multiple=True, metavar="NAME=2,16,64[:DTYPE]",
              help="Example input to draw at random; repeat for each.")  # fmt: skip
@click.option("--inputs", "inputs_file", type=click.Path(path_type=Path),
              help="Example inputs from an .npz file.")  # fmt: skip
@click.option("--dynamic", multiple=True, metavar="NAME.AXIS[=MIN..MAX]",
              help="Axis that must stay dynamic; an error if the model fixes it. Its range is what "
                   "an engine takes.")  # fmt: skip
@click.option("--static", multiple=True, metavar="NAME.AXIS",
              help="Axis to fix at the example's size.")  # fmt: skip
@click.option("--factory", metavar="MODULE:CALLABLE",
              help="Builds the model, where SOURCE is weights alone: a state dict, a .safetensors "
                   "file or index, or a folder with one.")  # fmt: skip
@click.option("--trust", is_flag=True,
              help="Let SOURCE run its code: a pickled module, a .pt2, a checkpoint's modeling "
                   "code.")  # fmt: skip
@click.option(
    "--no-verify", is_flag=True, help="Skip the comparison with eager; the bundle says so."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@click.option("--keep-going", is_flag=True,
              help="Try every MoE layer; if some are refused, list all of them.")  # fmt: skip
@click.option("--with-past", is_flag=True,
              help="Hugging Face causal models: one graph for prefill and decode with a key/value "
                   "cache, so that the bundle can generate.")  # fmt: skip
@click.option("--telemetry", is_flag=True,
              help="Add outputs that tell how each MoE layer spreads its tokens over its "
                   "experts.")  # fmt: skip
@click.option("--weights", type=click.Choice(WEIGHTS),
              help="How experts' weights are stored. Target cpu: fp32 if not given; all but fp8. "
                   "mxfp4: as the checkpoint has them. source: the narrowest type that holds a "
                   "layer's weights without rounding. GPUs: source if not given, which is the "
                   "type of the activations; or int8, int4, fp8.")  # fmt: skip
@click.option("--block-size", type=int, metavar="32|64|128",
              help="Inputs that share a scale in int4 weights; 128 if not given.")  # fmt: skip
@click.option("--zero-points", is_flag=True,
              help="Give every block of int4 weights a zero point.")  # fmt: skip
@click.option("--max-error", type=float, metavar="X",
              help="Keep as few layers as possible in float32 such that every output's relative "
                   "RMS error against eager, over all cases, is at most X.")  # fmt: skip
@click.option("--compute-capability", "compute_capabilities", multiple=True, metavar="8.0",
              help="GPU that an engine of tensorrt-rtx is for: 8.0, 8.6, 8.9, 12.0 or 12.1; "
                   "repeat for several. The one of this machine if not given.")  # fmt: skip
@click.option("--moe", type=click.Choice(MOE), default="auto", show_default=True,
              help="What computes experts in an engine. plugin: this package's plugins. native: "
                   "TensorRT's own MoE layer, where GPUs and layers allow it. auto: the plugins, "
                   "which were compared; with a note where GPUs have both.")  # fmt: skip
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Target tensorrt: let later versions of TensorRT run the engine.",
)
@click.option("--hardware-compatible", is_flag=True,
              help="Target tensorrt: let all GPUs from compute capability 8.0 on run the "
                   "engine.")  # fmt: skip
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path),
    help="Target tensorrt: file that keeps what was timed, for later builds.",
)
@click.option("--dry-run", is_flag=True,
              help="Write nothing: show what a build would find in every layer, and estimate its "
                   "size, memory and time.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seeds every random draw.")
@common_options
def build(
    source: str,
    folder: Path | None,
    inputs: tuple[str, ...],
    dynamic: tuple[str, ...],
    static: tuple[str, ...],
    compute_capabilities: tuple[str, ...],
    no_verify: bool,
    dry_run: bool,
    output: Output,
    **options: Any,  # noqa: ANN401 - fields of BuildPlan
) -> None:
    """Export SOURCE to a verified bundle.

    SOURCE is a Hugging Face folder or hub id (ORG/NAME or ORG/NAME@REVISION), MODULE:CALLABLE that
    returns a model (and example inputs), weights (.pt, .safetensors) with --factory, a .pt file
    with a whole module or a .pt2 of torch.export (both need --trust).

    Ends with 0 when done, 1 when the result differs from eager, 2 on wrong usage, 3 when the model
    has something unsupported (so does a dry run), 4 when the environment lacks something, 130 when
    interrupted.
    """
    if folder is None and not dry_run:
        raise UsageError("where to? Give the bundle's folder with -o, or pass --dry-run")
    plan = BuildPlan(
        output=folder or _NOWHERE,
        inputs=tuple(map(InputSpec.parse, inputs)),
        dynamic=tuple(map(AxisSpec.parse, dynamic)),
        static=tuple(map(AxisSpec.parse, static)),
        compute_capabilities=tuple(map(parse_compute_capability, compute_capabilities)),
        verify=not no_verify,
        **options,
    )
    if folder is not None:
        plan.check_output()
    _check_packages()
    if dry_run:
        _dry_run(source, plan, output)
    else:
        _build(source, plan, output)


def _check_packages() -> None:
    try:
        import moe_export.pipeline  # noqa: F401 - imports every stage
    except ModuleNotFoundError as error:
        raise EnvironmentLacksError(
            f"building needs {error.name}: pip install 'moe-export[cpu,export,hf]'"
        ) from error


def _build(source: str, plan: BuildPlan, output: Output) -> None:
    from moe_export.pipeline import build_source

    with StageProgress(output.verbosity) as progress:
        try:
            build_source(source, plan, progress)
        except ParityError:
            _show(plan.output, output)
            raise
    _show(plan.output, output)


def _dry_run(source: str, plan: BuildPlan, output: Output) -> None:
    from moe_export.dry_run import dry_run_source

    with StageProgress(output.verbosity) as progress:
        found = dry_run_source(source, plan, progress).to_json()
    output.emit(found, lambda: draw_dry_run(stdout(), found))
    if not found["would_build"]:
        raise SystemExit(UnsupportedModelError.exit_code)


def _show(folder: Path, output: Output) -> None:
    from moe_export.package.bundle import Bundle

    bundle = Bundle(folder, read_manifest(folder))
    manifest, parity = dataclasses.asdict(bundle.manifest), bundle.parity()

    def draw() -> None:
        console = stdout()
        draw_layers(console, manifest["layers"])
        if parity:
            draw_parity(console, parity)
        draw_quantization(console, manifest["layers"], parity)
        draw_engine(console, manifest)
        draw_verdict(console, manifest)
        size_mb = sum(f["size_bytes"] for f in manifest["files"].values()) / 1e6
        console.print(f"wrote {folder} ({size_mb:.1f} MB, target {manifest['target']})")

    output.emit({"bundle": str(folder), "manifest": manifest, "parity": parity}, draw)
