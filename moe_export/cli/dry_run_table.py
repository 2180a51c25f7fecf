"""Draw what ``build --dry-run`` found: a table of 80 columns, reasons, and an estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moe_export.cli.console import format_error
from moe_export.cli.report import describe_form, draw_unfused_routers

_WIDTH = 80
# Widest cells; the router's takes what is left. Longer ones continue on the next line.
_WIDEST = {"MoE layer": 19, "found as": 10, "experts": 14, "proof": 13, "router": None}


def draw_dry_run(console: Console, found: Mapping[str, Any]) -> None:
    """One row per MoE layer, then why some are refused, then what the build would take."""
    console.print(_table(found["layers"]), width=min(_WIDTH, console.width))
    console.print("proof: token counts tried, experts that probes reached, largest error")
    draw_unfused_routers(console, found["layers"])
    reasons = [layer["reason"] for layer in found["layers"] if layer["status"] == "refused"]
    for reason in [*reasons, *([found["failure"]] if found["failure"] else [])]:
        console.print(f"\n[red]refused[/]: {escape(reason)}", soft_wrap=True)
    if reasons:
        console.print("\na build would be refused; what comes after recognition was not tried")
    if found["estimate"]:
        _draw_estimate(console, found["estimate"])


def _table(layers: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column, width in _WIDEST.items():
        table.add_column(column, max_width=width, overflow="fold", no_wrap=column == "MoE layer")
    for layer in layers:
        path = escape(_tail(layer["path"]))
        if layer["status"] == "refused":
            table.add_row(path, "[red]refused[/]", "-", "-", "-")
        else:
            table.add_row(path, *map(escape, _row(layer)))
    return table


def _row(layer: Mapping[str, Any]) -> tuple[str, ...]:
    """How a layer was recognized, its experts, its proof, its router."""
    experts, proof = layer["experts"], layer["proof"]
    count = experts["num_experts"]
    tried = "-"
    if proof:
        tried = f"{len(proof['tokens'])}, {proof['experts_reached']}/{count}, "
        tried += format_error(proof["max_error"])
    router = layer["routing"] if layer.get("gating") else layer.get("router", "-")
    return layer["kind"], f"{count} {describe_form(experts)}", tried, router


def _tail(path: str) -> str:
    """The end of a path that fits its column."""
    widest = _WIDEST["MoE layer"] or _WIDTH
    return (path or "<root>") if len(path) <= widest else "…" + path[1 - widest :]


def _draw_estimate(console: Console, estimate: Mapping[str, Any]) -> None:
    size, weights, library = (
        _bytes(estimate[f"{name}_bytes"]) for name in ("size", "weights", "library")
    )
    console.print("\nestimate of a build, from what this dry run measured:")
    engine = estimate["engine_bytes"]
    again = f"engine {_bytes(engine)}, " if engine else ""
    console.print(
        f"  disk    {size}: weights {weights}, {again}op library {library}, graph and example"
    )
    console.print(f"  memory  {_bytes(estimate['peak_bytes'])} at its peak")
    console.print(
        f"  time    {_seconds(estimate['total_s'])}: {_seconds(estimate['measured_s'])} for what "
        f"was run here,\n          {_seconds(estimate['write_s'])} to write at the measured rate, "
        + (
            "without what TensorRT takes"
            if engine
            else f"{_seconds(estimate['verify_s'])} to compare\n          (its cases, each as long "
            "as eager on the largest)"
        )
    )


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _seconds(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.1f} s"
