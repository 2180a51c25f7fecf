"""Draw a benchmark for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from moe_export.benchmark.results import BenchResult, CaseResult, LayerResult
from moe_export.cli.console import make_table, shorten_path

# Layers that are listed unless all are asked for: the slowest.
_LISTED = 6


def draw_bench(console: Console, result: BenchResult, *, every_layer: bool) -> None:
    """Whole runs, then the MoE layers of each kind of run, then what the machine can do.

    Args:
        console: Where to.
        result: What was found.
        every_layer: List all layers, not only the slowest.
    """
    console.print(_run_table(result), markup=False)
    for case in result.cases:
        if case.layers:
            console.print()
            console.print(_layer_table(case, every_layer=every_layer))
    console.print()
    console.print(_machine_line(result), markup=False, soft_wrap=True)
    for remark in result.remarks:
        console.print(f"note: {remark}", style="yellow", markup=False, soft_wrap=True)


def _run_table(result: BenchResult) -> Table:
    against = any(case.eager for case in result.cases)
    columns = ["run", "p50 ms", "p90 ms", "p99 ms", "runs", "tokens/s", "MoE"]
    rows = []
    for case in result.cases:
        latency = case.latency
        moe = sum(layer.share_of_run for layer in case.layers)
        row = [
            case.name,
            _ms(latency.p50),
            _ms(latency.p90),
            _ms(latency.p99),
            str(latency.runs),
            f"{case.tokens_per_second:,.0f}",
            f"{moe:.0%}" if case.layers else "-",
        ]
        if case.eager is not None and case.ratio is not None and case.difference is not None:
            row += [_ms(case.eager.p50), f"{case.ratio:.2f}", f"{case.difference:.1e}"]
        rows.append(row)
    columns += ["eager ms", "eager / bundle", "differ by"] if against else []
    return make_table("", columns, rows)


def _layer_table(case: CaseResult, *, every_layer: bool) -> Table:
    slowest = sorted(case.layers, key=lambda layer: -layer.seconds)[:_LISTED]
    chosen = [la for la in case.layers if every_layer or la in slowest]
    columns = [case.name, "ms", "of run", "experts hit", "MB", "rate", "of limit"]
    rows = [_layer_row(layer) for layer in chosen]
    if len(case.layers) > 1:
        rows.append(_total_row(case.layers))
    return make_table("", columns, rows)


def _layer_row(layer: LayerResult) -> list[str]:
    row = [shorten_path(layer.path), _ms(layer.seconds), f"{layer.share_of_run:.1%}"]
    if layer.experts_hit is None or layer.read_bytes is None or layer.share_of_limit is None:
        return [*row, "-", "-", "-", "-"]
    return [
        *row,
        f"{layer.experts_hit:.1f}",
        f"{layer.read_bytes / 1e6:.1f}",
        _rate(layer),
        f"{layer.share_of_limit:.0%}",
    ]


def _rate(layer: LayerResult) -> str:
    """Of what limits the layer: bytes, or multiplications and additions."""
    seconds = max(layer.seconds, 1e-6)
    if layer.limited_by == "read":
        return f"{(layer.read_bytes or 0.0) / seconds / 1e9:.1f} GB/s"
    return f"{(layer.operations or 0.0) / seconds / 1e9:.0f} GOP/s"


def _total_row(layers: Sequence[LayerResult]) -> list[str]:
    seconds = sum(layer.seconds for layer in layers)
    row = [f"all {len(layers)}", _ms(seconds), f"{sum(la.share_of_run for la in layers):.1%}", ""]
    known = [la for la in layers if la.share_of_limit is not None and la.read_bytes is not None]
    if len(known) < len(layers):
        return [*row, "-", "-", "-"]
    size = sum(la.read_bytes or 0.0 for la in known)
    ideal = sum(la.seconds * (la.share_of_limit or 0.0) for la in known)
    return [*row, f"{size / 1e6:.1f}", "", f"{ideal / seconds:.0%}"]


def _machine_line(result: BenchResult) -> str:
    said = [f"{result.threads} threads", f"{result.rounds} rounds"]
    if result.read_bandwidth is not None:
        said.append(f"reading {result.read_bandwidth / 1e9:.1f} GB/s")
    said += [f"{name} {rate / 1e9:.0f} GOP/s" for name, rate in result.rates.items()]
    return "limits, measured between the runs: " + ", ".join(said)


def _ms(seconds: float) -> str:
    milliseconds = seconds * 1e3
    return f"{milliseconds:.1f}" if milliseconds >= 100 else f"{milliseconds:.3g}"
