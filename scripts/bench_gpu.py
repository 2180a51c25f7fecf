"""Time MoE layers on this machine's first GPU, beside what its memory and tensor cores allow.

    python scripts/bench_gpu.py                      # OLMoE, Qwen3 and Mixtral, 1 to 4096 tokens
    python scripts/bench_gpu.py qwen3 --tokens 1,64  # one layer
    python scripts/bench_gpu.py --record             # also fills the README's table

A call is recorded as a CUDA graph and run 50 times; times are medians of the whole layer: sorting,
both products and the sum. The limit is by whichever takes longer: reading the weights of the
experts that were hit, at the rate of a copy on this GPU measured just before, or multiplying at the
data sheet's rate. The best tile is what TensorRT would choose by timing them; occupancy is that of
its first product: the threads that a multiprocessor runs at once, of those that it could.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from gpu_bench.limits import Work, peak_operations
from gpu_bench.measure import Result, measure
from moe_bench.layers import LAYERS
from moe_bench.record import ROOT, write_readme
from rich.console import Console
from rich.table import Table

from moe_export.errors import EnvironmentLacksError
from moe_export.gpu.c_api import GpuLibrary
from moe_export.gpu.layers import list_forms
from moe_export.runners.device import DriverDevice
from moe_export.runners.library import gpu_library_path

RECORD = ROOT / "scripts" / "bench_gpu.json"
COLUMNS = (
    "layer",
    "form",
    "tokens",
    "experts hit",
    "µs",
    "best tile",
    "its µs",
    "limit, µs",
    "of it",
    "occupancy",
)
FORMS = ("bf16 x bf16", "bf16 x int8", "bf16 x int4, blocks of 128", "bf16 x fp8")


def main() -> None:
    """Parse options, measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("layers", nargs="*", default=["olmoe", "qwen3", "mixtral"], choices=LAYERS)
    parser.add_argument("--tokens", default="1,4,16,64,256,1024,4096")
    parser.add_argument("--record", action="store_true", help="write bench_gpu.json and the README")
    parser.add_argument("-o", "--output", type=Path, help="write the results as JSON")
    options = parser.parse_args()
    try:
        library, device = GpuLibrary(gpu_library_path()), DriverDevice()
    except EnvironmentLacksError as error:
        raise SystemExit(f"error: {error}") from error
    capability = library.number("device_capability")
    machine = {
        "device": device.name,
        "compute_capability": f"{capability // 10}.{capability % 10}",
        "copy_bytes_per_second": device.copy_rate(),
        "peak_operations_per_second": peak_operations(device.name),
    }
    forms = [form for form in list_forms() if str(form) in FORMS]
    results: list[Result] = []
    console = Console()
    with console.status("timing") as status:
        for name in options.layers:
            tokens = [int(count) for count in options.tokens.split(",")]
            for result in measure(library, device, LAYERS[name], forms, tokens):
                status.update(f"{name}, {result.form}, {result.tokens} tokens")
                results.append(result)
    rows = list_rows(results, machine)
    table = Table(
        *COLUMNS, title=f"{device.name}, copies at {machine['copy_bytes_per_second']:.3g} B/s"
    )
    for row in rows:
        table.add_row(*row)
    console.print(table)
    text = json.dumps({"machine": machine, "results": [asdict(r) for r in results]}, indent=1)
    for path in [options.output] if options.output else []:
        path.write_text(text + "\n", encoding="utf-8")
    if options.record:
        RECORD.write_text(text + "\n", encoding="utf-8")
        write_readme("gpu bench", to_markdown(device.name, rows))


def list_rows(results: Sequence[Result], machine: dict[str, object]) -> list[list[str]]:
    """A row per result."""
    rate, peak = machine["copy_bytes_per_second"], machine["peak_operations_per_second"]
    rows = []
    for result in results:
        work = Work(result.bytes_read, result.operations)
        limit = work.limit_us(float(str(rate)), None if peak is None else float(str(peak)))
        best = min(result.tiles_us, key=lambda tile: result.tiles_us[tile])
        shares = [f"{limit:.1f}", f"{100 * limit / result.median_us:.0f} %"]
        share = result.occupancy[best]
        shares.append("-" if share is None else f"{100 * share:.0f} %")
        times = [f"{result.median_us:.1f}", best, f"{result.tiles_us[best]:.1f}"]
        rows.append(
            [result.layer, result.form, str(result.tokens), str(result.hit), *times, *shares]
        )
    return rows


def to_markdown(device: str, rows: Sequence[Sequence[str]]) -> str:
    """The README's table."""
    lines = [f"{device}:", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


if __name__ == "__main__":
    main()
