"""Draw what smaller weights save and cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from moe_export.cli.console import format_error, make_table, shorten_path


def draw_quantization(
    console: Console, layers: Sequence[Mapping[str, Any]], parity: Mapping[str, Any]
) -> None:
    """How smaller weights are stored and what that costs; nothing where all are float32.

    Args:
        console: Where to draw.
        layers: The manifest's.
        parity: The parity report; empty where nothing was compared.
    """
    found = parity.get("quantization")
    if not found:
        _draw_storage(console, layers)
        return
    console.print(make_table("", _COLUMNS, map(_layer_row, found["layers"])))
    outputs = [
        (name, format_error(error["largest"]), format_error(error["rms"]))
        for name, error in found["outputs"].items()
    ]
    console.print(make_table("", ("with these weights", "error", "rms"), outputs))
    if found["max_error"] is not None:
        kept = ", ".join(path or "<root>" for path in found["kept"]) or "none"
        console.print(
            f"kept in float32 for an error of at most {found['max_error']:g}: {kept}",
            soft_wrap=True,
        )


_COLUMNS = ("weights", "stored as", "MB", "of fp32", "error", "rms", "kernel", "rerouted")


def _layer_row(layer: Mapping[str, Any]) -> tuple[str, ...]:
    stored, error = layer["stored"], layer["error"]
    kernel = max(map(float, layer["kernel_errors"].values()), default=None)
    return (
        shorten_path(layer["path"]),
        describe_storage(stored),
        f"{stored['bytes'] / 1e6:.1f}",
        f"{100 * stored['bytes'] / stored['float32_bytes']:.0f} %",
        format_error(error["largest"]),
        format_error(error["rms"]),
        format_error(kernel),
        f"{layer['rerouted']}/{layer['tokens']}",
    )


def _draw_storage(console: Console, layers: Sequence[Mapping[str, Any]]) -> None:
    """One line per way of storing that is not float32; older bundles do not say."""
    counts = Counter(describe_storage(la["weights"]) for la in layers if "weights" in la)
    for storage, count in counts.items():
        if storage != "fp32":
            console.print(f"weights of {count} of {len(layers)} layers: {storage}, not compared")


def describe_storage(stored: Mapping[str, Any]) -> str:
    """A storage in words, such as ``int4/128 + zero``: a block of 128, with zero points."""
    block = f"/{stored['block_size']}" if stored["block_size"] else ""
    return f"{stored['weight_type']}{block}{' + zero' if stored['zero_points'] else ''}"
