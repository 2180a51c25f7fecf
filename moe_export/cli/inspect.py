"""``moe-export inspect``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from moe_export.cli.console import StageProgress, stdout
from moe_export.cli.options import Output, common_options
from moe_export.cli.quantization_table import draw_quantization
from moe_export.cli.report import (
    draw_engine,
    draw_layers,
    draw_parity,
    draw_signature,
    draw_verdict,
)
from moe_export.cli.show_load import show_load
from moe_export.errors import EnvironmentLacksError, UsageError
from moe_export.package.manifest import MANIFEST_NAME, check_files, read_manifest
from moe_export.plan import BuildPlan, InputSpec


@click.command(epilog="Example: moe-export inspect bundle --inputs x.npz")
@click.argument("source")
@click.option("--input", "inputs", multiple=True, metavar="NAME=2,16,64[:DTYPE]",
              help="Example input to draw at random; repeat for each.")  # fmt: skip
@click.option("--inputs", "inputs_file", type=click.Path(path_type=Path),
              help="Arrays by input name, .npz. A bundle is run on them and shows the load of its "
                   "experts; a model takes them as its example.")  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.png",
              help="Plot a bundle's expert load on --inputs; needs matplotlib.")  # fmt: skip
@click.option("--trust", is_flag=True,
              help="Unpickle a whole module, which may run any code; or use the op library inside "
                   "the bundle.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seeds every random draw.")
@common_options
def inspect(
    source: str,
    inputs: tuple[str, ...],
    inputs_file: Path | None,
    plot: Path | None,
    trust: bool,
    seed: int,
    output: Output,
) -> None:
    """Show the MoE layers of a model, what a bundle holds, or how it loads its experts.

    SOURCE is a bundle, or anything that build takes. A model is run in eager on example inputs and
    its MoE layers are recognized and proved; nothing is written. What their routers are
    is found in the exported graph: a bundle shows it. With --inputs a bundle is run, and shows
    for each layer how many of the tokens' choices went to which expert; -v adds a row per expert.
    """
    if (Path(source) / MANIFEST_NAME).is_file():
        if inputs:
            raise UsageError("--input draws an example for a model; a bundle takes --inputs FILE")
        if inputs_file is not None:
            show_load(Path(source), inputs_file, plot, trust=trust, output=output)
        elif plot is not None:
            raise UsageError("--plot shows the experts' load on inputs: add --inputs FILE.npz")
        else:
            _show_bundle(Path(source), output)
        return
    if plot is not None:
        raise UsageError(f"--plot needs a bundle; {source} is none: build it first")
    try:
        from moe_export.recognize.stage import recognize
        from moe_export.sources.source import load_source
    except ModuleNotFoundError as error:
        raise EnvironmentLacksError(
            f"inspecting a model needs {error.name}: pip install 'moe-export[export,hf]'"
        ) from error
    plan = BuildPlan(
        output=Path(),
        inputs=tuple(map(InputSpec.parse, inputs)),
        inputs_file=inputs_file,
        trust=trust,
        seed=seed,
    )
    with StageProgress(output.verbosity) as progress:
        progress.stage("load")
        loaded = load_source(source, plan)
        progress.stage("recognize")
        blocks = recognize(loaded, progress).blocks
        layers = [{**block.describe(), "router": "-"} for block in blocks]
    output.emit({"source": source, "layers": layers}, lambda: draw_layers(stdout(), layers))


def _show_bundle(folder: Path, output: Output) -> None:
    from moe_export.package.bundle import Bundle

    bundle = Bundle(folder, read_manifest(folder))
    check_files(folder, bundle.manifest)
    manifest, parity = dataclasses.asdict(bundle.manifest), bundle.parity()

    def draw() -> None:
        console = stdout()
        source = manifest["source"]
        console.print(
            f"{folder}: {source['name']} ({source['architecture']}), {manifest['target']}"
        )
        draw_signature(console, manifest)
        draw_layers(console, manifest["layers"])
        if parity:
            draw_parity(console, parity)
        draw_quantization(console, manifest["layers"], parity)
        draw_engine(console, manifest)
        draw_verdict(console, manifest)
        for remark in manifest["remarks"]:
            console.print(f"note: {remark}", style="yellow", soft_wrap=True)

    output.emit({"manifest": manifest, "parity": parity}, draw)
