"""``moe-export verify``."""

from __future__ import annotations

import warnings
from pathlib import Path

import click
from rich.console import Console

from moe_export.cli.console import format_error, make_table, shorten_path, stdout
from moe_export.cli.options import Output, common_options
from moe_export.errors import ParityError
from moe_export.package.bundle import UnverifiedBundleWarning, load
from moe_export.replay.compare import replay
from moe_export.replay.report import ReplayReport


@click.command(epilog="Example: moe-export verify bundle")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--trust", is_flag=True, help="Use the op library inside the bundle.")
@common_options
def verify(folder: Path, trust: bool, output: Output) -> None:
    """Compare a bundle with eager PyTorch where it runs, without PyTorch.

    Runs the example that the build recorded: outputs and routing against eager's, and each MoE node
    against the NumPy reference on what it read. An engine is built once more for it, with outputs
    between its layers.

    Ends with 0 when all is within its bounds, 1 when not, 4 when a GPU, TensorRT or a package is
    missing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnverifiedBundleWarning)  # this is what is done about it
        bundle = load(folder, trust=trust)
        found = replay(bundle)
    output.emit(found.to_json(), lambda: _draw(stdout(), found))
    if not found.passed:
        listed = "\n  ".join(found.failures)
        raise ParityError(f"{folder} does not compute here what eager does:\n  {listed}")


def _draw(console: Console, found: ReplayReport) -> None:
    outputs = [
        (o.name, format_error(o.rms), format_error(o.eager_rms), format_error(o.allowed))
        for o in found.outputs
    ]
    columns = ("output, RMS error", "bundle", "eager in its type", "allowed")
    console.print(make_table("", columns, outputs))
    layers = [(shorten_path(la.path), la.tokens, la.rerouted, la.allowed) for la in found.layers]
    console.print(make_table("", ("routing", "tokens", "elsewhere", "allowed"), layers))
    nodes = [
        (shorten_path(node.name), format_error(node.error), format_error(node.allowed))
        for node in found.nodes
    ]
    console.print(make_table("", ("node, on its own inputs", "error", "allowed"), nodes))
    if found.passed:
        console.print(
            f"[green]verified[/] on {found.device}: {found.runs} runs gave the same bits",
            soft_wrap=True,
            highlight=False,
        )
