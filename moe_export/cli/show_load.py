"""``moe-export inspect DIR --inputs FILE``: run a bundle and show its experts' load."""

from __future__ import annotations

import warnings
from pathlib import Path

import click

from moe_export.cli.console import stdout
from moe_export.cli.load_plot import check_plot, plot_load
from moe_export.cli.load_table import draw_load
from moe_export.cli.options import Output
from moe_export.package.bundle import load
from moe_export.runners.arrays import read_arrays
from moe_export.telemetry.expert_load import OVERLOAD_FACTOR


def show_load(
    folder: Path, inputs_file: Path, plot: Path | None, *, trust: bool, output: Output
) -> None:
    """Run the bundle once on ``inputs_file`` and print the load of every layer.

    Raises:
        UsageError: the inputs or the plot's name do not fit.
        EnvironmentLacksError: a package is missing.
    """
    if plot is not None:
        check_plot(plot)
    inputs = read_arrays(inputs_file)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loads = load(folder, trust=trust).expert_load(inputs)
    for warning in caught:
        click.secho(f"warning: {warning.message}", err=True, fg="yellow")
    if plot is not None:
        plot_load(loads, plot)

    def draw() -> None:
        draw_load(stdout(), loads, every_expert=output.verbosity > 0)
        if plot is not None:
            click.echo(f"wrote {plot}")

    values = {
        "bundle": str(folder),
        "inputs": str(inputs_file),
        "overload_factor": OVERLOAD_FACTOR,
        "layers": [each.to_json() for each in loads],
        "plot": str(plot) if plot else None,
    }
    output.emit(values, draw)
