"""Draw what smaller weights save and cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from moe_export.cli.console import format_error, make_table, shorten_path


def draw_quantization(console: Console, parity: Mapping[str, Any]) -> None:
    """A row per layer, then one per output; nothing for a bundle with float32 weights."""
    found = parity.get("quantization")
    if not found:
        return
    rows = []
    for layer in found["layers"]:
        stored, error = layer["stored"], layer["error"]
        kernel = max(map(float, layer["kernel_errors"].values()), default=None)
        rows.append(
            (
                shorten_path(layer["path"]),
                describe_storage(stored),
                f"{stored['bytes'] / 1e6:.1f}",
                f"{100 * stored['bytes'] / stored['float32_bytes']:.0f} %",
                format_error(error["largest"]),
                format_error(error["rms"]),
                format_error(kernel),
                f"{layer['rerouted']}/{layer['tokens']}",
            )
        )
    columns = ("weights", "stored as", "MB", "of fp32", "error", "rms", "kernel", "rerouted")
    console.print(make_table("", columns, rows))
    outputs = [
        (name, format_error(error["largest"]), format_error(error["rms"]))
        for name, error in found["outputs"].items()
    ]
    console.print(make_table("", ("with these weights", "error", "rms"), outputs))


def describe_storage(stored: Mapping[str, Any]) -> str:
    """A storage in words, such as ``int4/128 + zero``: a block of 128, with zero points."""
    block = f"/{stored['block_size']}" if stored["block_size"] else ""
    return f"{stored['weight_type']}{block}{' + zero' if stored['zero_points'] else ''}"
