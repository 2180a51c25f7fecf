"""Plot the experts' load to a file, with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_export.errors import EnvironmentLacksError, UsageError
from moe_export.telemetry.expert_load import OVERLOAD_FACTOR, ExpertLoad

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Layers that get a chart of their own; more become rows of one picture.
_MOST_CHARTS = 12
_COLUMNS = 3


def check_plot(path: Path) -> None:
    """Find out before any work whether a plot can be written to ``path``.

    Raises:
        EnvironmentLacksError: matplotlib is not installed.
        UsageError: matplotlib does not write such files, or the folder is not there.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ModuleNotFoundError as error:
        raise EnvironmentLacksError(
            "--plot needs matplotlib: pip install 'moe-export[plot]'"
        ) from error
    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise UsageError(f"--plot {path}: the name must end in one of .{', .'.join(kinds)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.absolute().parent}")


def plot_load(loads: Sequence[ExpertLoad], path: Path) -> None:
    """Write a chart per layer, or one picture with a row per layer where there are many.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    if len(loads) <= _MOST_CHARTS:
        columns = min(_COLUMNS, len(loads))
        rows = -(-len(loads) // columns)
        figure = Figure(figsize=(4.5 * columns, 2.8 * rows), layout="constrained")
        charts = figure.subplots(rows, columns, squeeze=False).ravel()
        for chart, load in zip(charts, loads, strict=False):
            _draw_chart(chart, load)
        for chart in charts[len(loads) :]:
            chart.set_axis_off()
        figure.legend(*charts[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    else:
        figure = Figure(figsize=(10, 1.5 + 0.22 * len(loads)), layout="constrained")
        chart = figure.subplots()
        image = chart.imshow(_matrix(loads), aspect="auto", interpolation="nearest", vmin=0, vmax=4)
        chart.set_yticks(range(len(loads)), [load.path or "<root>" for load in loads], fontsize=7)
        chart.set_xlabel("expert")
        figure.colorbar(image, label="choices over the even share", extend="max")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UsageError(f"--plot {path}: it cannot be written: {error}") from error


def _draw_chart(chart: Axes, load: ExpertLoad) -> None:
    """Bars of the choices over the even share, and points of the mean probability over its own."""
    experts = np.arange(load.num_experts)
    chart.bar(experts, load.relative_load, width=0.9, label="choices")
    mass = float(load.mean_probability.sum()) or 1.0
    points = load.mean_probability * (load.num_experts / mass)
    chart.plot(experts, points, ".", color="black", markersize=3, label="mean probability")
    chart.axhline(1, color="gray", linewidth=0.8, label="even share")
    chart.axhline(OVERLOAD_FACTOR, color="red", linewidth=0.8, label="overloaded above")
    balance = "-" if load.balance is None else f"{load.balance:.2f}"
    chart.set_title(
        f"{load.path or '<root>'}: balance {balance}, {len(load.dead)} dead", fontsize=9
    )
    chart.set_xlabel("expert", fontsize=8)
    chart.set_ylabel("times the even share", fontsize=8)


def _matrix(loads: Sequence[ExpertLoad]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """``[layers, experts]``, NaN where a layer has fewer."""
    matrix = np.full((len(loads), max(load.num_experts for load in loads)), np.nan)
    for row, load in zip(matrix, loads, strict=True):
        row[: load.num_experts] = load.relative_load
    return matrix
