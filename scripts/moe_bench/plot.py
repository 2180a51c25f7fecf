"""The roofline: where each contender is between reading weights and multiplying."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_bench.results import Result

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = {"fp32": "o", "bf16": "s", "int8": "^", "int4": "D"}
_OURS = "black"


def plot_roofline(path: Path, results: Sequence[Result]) -> None:
    """Write :func:`draw_roofline` to a file; its ending says the format."""
    draw_roofline(results).savefig(path, dpi=150)


def draw_roofline(results: Sequence[Result]) -> Figure:
    """One panel per layer: operations per byte against operations per second.

    Args:
        results: At least one; uniform and skewed routing are drawn alike.
    """
    from matplotlib.figure import Figure  # only those who draw need it

    layers = list(dict.fromkeys(result.layer for result in results))
    figure = Figure(figsize=(2 + 7 * len(layers), 6), layout="constrained")
    peers = sorted({result.contender for result in results if not result.ours})
    colors = {name: f"C{place}" for place, name in enumerate(peers)}
    panels = figure.subplots(1, len(layers), squeeze=False)[0]
    for axes, layer in zip(panels, layers, strict=True):
        of_layer = [result for result in results if result.layer == layer]
        _draw_limits(axes, of_layer)
        for name in dict.fromkeys((r.contender, r.width, r.ours) for r in of_layer):
            _draw_contender(axes, [r for r in of_layer if _name(r) == name], colors)
        axes.set(title=layer, xscale="log", yscale="log")
        axes.set(xlabel="operations per byte of weights", ylabel="GFLOP/s")
    figure.legend(*_labels(panels), loc="outside right upper", fontsize="x-small")
    return figure


def _labels(panels: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    """Every line once, whichever panels it is in."""
    found: dict[str, Artist] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found = dict(zip(labels, handles, strict=True)) | found
    return list(found.values()), list(found)


def intensity(result: Result) -> float:
    """Operations per byte that has to be read."""
    return result.operations / result.bytes_read


def _name(result: Result) -> tuple[str, str, bool]:
    return result.contender, result.width, result.ours


def _draw_limits(axes: Axes, results: Sequence[Result]) -> None:
    """The slope of the read bandwidth up to the roof of each kind of arithmetic."""
    read = np.median([result.read_rate for result in results])
    ends = np.array([min(map(intensity, results)) / 2, max(map(intensity, results)) * 2])
    for widths, label, style in (
        (("fp32",), "fp32 multiply-adds", "-"),
        (("bf16", "int8", "int4"), "torch's dense bf16", "--"),
    ):
        rates = [result.peak_rate for result in results if result.width in widths]
        if rates:
            roof = np.median(rates)
            x = np.unique([*ends, np.clip(roof / read, *ends)])
            axes.plot(x, np.minimum(x * read, roof) / 1e9, style, color="lightgray", label=label)


def _draw_contender(axes: Axes, results: Sequence[Result], colors: dict[str, str]) -> None:
    """A line through a contender's cases, from few tokens to many."""
    name, width, ours = _name(results[0])
    ordered = sorted(results, key=intensity)
    axes.plot(
        [intensity(result) for result in ordered],
        [result.operations / result.seconds / 1e9 for result in ordered],
        marker=_MARKERS[width],
        markersize=5 if ours else 3,
        linewidth=1.5 if ours else 0.5,
        color=_OURS if ours else colors[name],
        label=f"{name} {width}",
    )
