"""``moe-export run``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import click

from moe_export.cli.console import make_table, stdout
from moe_export.cli.options import Output, common_options
from moe_export.package.bundle import load
from moe_export.runners.arrays import read_arrays, write_arrays


@click.command(epilog="Example: moe-export run bundle --inputs x.npz --outputs y.npz")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--inputs", "inputs_file", type=click.Path(path_type=Path),
              help="Arrays by input name; the bundle's example without it.")  # fmt: skip
@click.option("--outputs", "outputs_file", type=click.Path(path_type=Path),
              help="Where to write the outputs, .npz.")  # fmt: skip
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    help="Threads inside an operator; 0: all cores.",
)
@click.option("--trust", is_flag=True, help="Use the op library inside the bundle.")
@common_options
def run(
    folder: Path,
    inputs_file: Path | None,
    outputs_file: Path | None,
    threads: int,
    trust: bool,
    output: Output,
) -> None:
    """Run a bundle in ONNX Runtime, without PyTorch."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bundle = load(folder, trust=trust, num_threads=threads)
        results = bundle.run(read_arrays(inputs_file or folder / "example" / "inputs.npz"))
    for warning in caught:
        click.secho(f"warning: {warning.message}", err=True, fg="yellow")
    if outputs_file is not None:
        write_arrays(outputs_file, results)
    rows = [(name, a.dtype.name, list(a.shape)) for name, a in results.items()]
    values: dict[str, Any] = {
        "outputs": {n: {"dtype": d, "shape": s} for n, d, s in rows},
        "file": str(outputs_file) if outputs_file else None,
    }
    output.emit(values, lambda: stdout().print(make_table("", ("output", "dtype", "shape"), rows)))
