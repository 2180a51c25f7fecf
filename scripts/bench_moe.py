"""Time one MoE layer in this library, ONNX Runtime and PyTorch, side by side in one process.

    python scripts/bench_moe.py                                # OLMoE, 1 to 1024 tokens
    python scripts/bench_moe.py qwen3 mixtral --tokens 1,64
    python scripts/bench_moe.py olmoe --skewed --json results.json

Contenders take turns, with two threads each; times are medians. Read bandwidth, the float32 peak
and PyTorch's dense bf16 product are measured in the same rounds: absolute times mean little on a
shared machine, shares and ratios more. A peer's ratio is its time over ours, of the same width.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from moe_bench.contenders import CONTENDERS, Contender
from moe_bench.layers import LAYERS, Layer, draw_weights
from moe_bench.limits import Limits
from moe_bench.measure import Result, measure
from moe_bench.record import RECORD, write_readme, write_results
from moe_bench.routing import Bind
from moe_bench.sessions import THREADS
from rich.console import Console
from rich.table import Table

TOKENS = "1,4,16,64,256,1024"


def bench_layer(
    layer: Layer, limits: Limits, options: argparse.Namespace, console: Console
) -> list[Result]:
    """Prepare the contenders for one layer and time them at every number of tokens."""
    chosen = choose_contenders(options.only, console)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        with console.status(f"{layer.name}: drawing weights"):
            weights = draw_weights(layer, Path(folder))
        bound: list[tuple[Contender, Bind]] = []
        for contender in chosen:
            with console.status(f"{layer.name}: preparing {contender.name}"):
                bound.append((contender, contender.prepare(weights)))
        for tokens in map(int, options.tokens.split(",")):
            with console.status(f"{layer.name}: {tokens} tokens"):
                found = measure(
                    weights, bound, tokens, options.rounds, limits, skewed=options.skewed
                )
            results += found
            console.print(make_table(found))
    return results


def choose_contenders(only: str | None, console: Console) -> list[Contender]:
    """Those whose name holds ``only`` and whose package is there; says which are not."""
    wanted = [c for c in CONTENDERS if not only or only in c.name]
    for package in sorted({c.package for c in wanted if not c.is_installed}):
        names = dict.fromkeys(c.name for c in wanted if c.package == package)
        console.print(f"left out: {', '.join(names)} (pip install {package})")
    return [c for c in wanted if c.is_installed]


def make_table(results: Sequence[Result]) -> Table:
    """One row per contender; the ratio is the peer's time over ours."""
    first = results[0]
    routing = "skewed" if first.skewed else "uniform"
    title = f"{first.layer}, {first.tokens} tokens, {routing}: {first.hit:.0f} experts hit"
    table = Table("contender", "weights", "ms", "peer / ours", "read", "peak", "error", title=title)
    ours = {result.width: result.seconds for result in results if result.ours}
    for result in results:
        own = ours.get(result.width)
        ratio = "" if result.ours or own is None else f"{result.seconds / own:.2f}"
        table.add_row(
            result.contender,
            result.width,
            f"{result.seconds * 1e3:.2f}",
            ratio,
            f"{result.read_share:.0%}",
            f"{result.peak_share:.0%}",
            f"{result.error:.0e}",
        )
    return table


def main() -> None:
    """Time the named layers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("layers", nargs="*", default=["olmoe"], choices=[*LAYERS], metavar="LAYER")
    parser.add_argument("--tokens", default=TOKENS, help=f"numbers of tokens; {TOKENS} if left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skewed", action="store_true", help="Zipf's law instead of even routing")
    parser.add_argument("--only", help="contenders whose name holds this text")
    parser.add_argument("--folder", type=Path, help="where the weights are written meanwhile")
    parser.add_argument("--json", type=Path, help="keep the results and the machine here")
    parser.add_argument("--record", action="store_true", help="keep them for the README's table")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        limits = Limits(Path(folder))
    results: list[Result] = []
    for name in options.layers:
        results += bench_layer(LAYERS[name], limits, options, console)
    if options.json:
        write_results(options.json, results)
    if options.record:
        write_results(RECORD, results)
        write_readme(results)


if __name__ == "__main__":
    main()
