"""Time one MoE layer in this library and in its peers, side by side in one process.

    python scripts/bench_moe.py                                # OLMoE, 1 to 1024 tokens
    python scripts/bench_moe.py qwen3 mixtral --tokens 1,64
    python scripts/bench_moe.py olmoe --routing skewed --json results.json

Contenders take turns, with two threads each; times are medians. Read bandwidth, the float32 peak
and PyTorch's dense bf16 product are measured in the same rounds: absolute times mean little on a
shared machine, shares and ratios more. Contenders of one weight width are in memory together, and
fewer where they do not fit; ours of that width is always among them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from moe_bench.compare import LEGEND
from moe_bench.contenders import CONTENDERS, WEIGHT_BITS, Contender
from moe_bench.groups import leave_out, make_groups, release
from moe_bench.layers import LAYERS, Layer, Weights, draw_weights
from moe_bench.measure import Bound, measure
from moe_bench.plot import plot_roofline
from moe_bench.record import RECORD, Record, machine, read_records, write_readme, write_record
from moe_bench.results import Refusal, Result
from moe_bench.routing import Refused, draw_case
from moe_bench.sessions import THREADS
from moe_bench.tables import case_tables, readme_table
from rich.console import Console

from moe_export.benchmark.limits import Limits

TOKENS = "1,4,16,64,256,1024"


def bench_layer(
    layer: Layer, limits: Limits, options: argparse.Namespace, console: Console
) -> tuple[list[Result], list[Refusal]]:
    """Time every contender on every case of one layer, group by group."""
    results = list[Result]()
    chosen, refusals = leave_out(choose_contenders(options.only, options.weights, console), layer)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        with console.status(f"{layer.name}: drawing weights"):
            weights = draw_weights(layer, Path(folder))
            cases = [
                draw_case(weights, int(tokens), skewed=routing == "skewed")
                for routing in options.routing.split(",")
                for tokens in options.tokens.split(",")
            ]
        for group in make_groups(chosen, layer):
            bound, refused = _prepare(group, weights, console)
            refusals += refused
            for case in cases:
                with console.status(f"{layer.name}, {group[0].width}: {case.tokens} tokens"):
                    found, refused = measure(layer, bound, case, options.rounds, limits)
                # Ours is in every group of its width, for the ratios: one result is enough.
                known = {(r.contender, r.width, r.tokens, r.skewed) for r in results if r.ours}
                results += [
                    r for r in found if (r.contender, r.width, r.tokens, r.skewed) not in known
                ]
                refusals += refused
            bound.clear()
            release(weights)
    return results, refusals


def _prepare(
    group: Sequence[Contender], weights: Weights, console: Console
) -> tuple[list[Bound], list[Refusal]]:
    bound, refusals = list[Bound](), list[Refusal]()
    for contender in group:
        with console.status(f"{weights.layer.name}: preparing {contender.name} {contender.width}"):
            try:
                bound.append((contender, contender.prepare(weights)))
            except Refused as refusal:
                said = (weights.layer.name, 0, contender.name, contender.width, str(refusal))
                refusals.append(Refusal(*said))
    if group[0].width != "fp32":  # each holds its own copy by now
        weights.release_pages()
    return bound, refusals


def choose_contenders(only: str | None, widths: Sequence[str], console: Console) -> list[Contender]:
    """Those that are wanted and installed; says which are not."""
    wanted = [c for c in CONTENDERS if c.width in widths and (not only or only in c.name)]
    for package in sorted({c.package for c in wanted if not c.is_installed}):
        names = dict.fromkeys(c.name for c in wanted if c.package == package)
        console.print(f"left out: {', '.join(names)} (pip install {package})")
    return [c for c in wanted if c.is_installed]


def _layer(name: str) -> Layer:
    if name not in LAYERS:
        raise argparse.ArgumentTypeError(f"{name}: expected one of {', '.join(LAYERS)}")
    return LAYERS[name]


def _widths(text: str) -> list[str]:
    if not set(text.split(",")) <= set(WEIGHT_BITS):
        raise argparse.ArgumentTypeError(f"{text}: expected some of {','.join(WEIGHT_BITS)}")
    return text.split(",")


def _routing(text: str) -> str:
    if not set(text.split(",")) <= {"uniform", "skewed"}:
        raise argparse.ArgumentTypeError(f"{text}: expected uniform, skewed or uniform,skewed")
    return text


def main() -> None:
    """Time the named layers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "layers",
        nargs="*",
        type=_layer,
        default=[LAYERS["olmoe"]],
        metavar="LAYER",
        help=f"{', '.join(LAYERS)}; olmoe if left out",
    )
    parser.add_argument("--tokens", default=TOKENS, help=f"numbers of tokens; {TOKENS} if left out")
    parser.add_argument(
        "--weights",
        type=_widths,
        default=list(WEIGHT_BITS),
        help="such as bf16,int4; all if left out",
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--routing", type=_routing, default="uniform", help="uniform, skewed (Zipf's law), or both"
    )
    parser.add_argument("--only", help="contenders whose name holds this text")
    parser.add_argument("--folder", type=Path, help="where the weights are written meanwhile")
    parser.add_argument("--json", type=Path, help="keep the results and the machine here")
    parser.add_argument("--record", action="store_true", help="keep them for the README's table")
    parser.add_argument("--plot", type=Path, help="draw the roofline here (needs matplotlib)")
    parser.add_argument(
        "--show", type=Path, nargs="+", help="only show the results of earlier runs with --json"
    )
    options = parser.parse_args()
    console = Console()
    if options.show:
        try:
            record = read_records(options.show)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        _show(record.results, record.refusals, console)
    else:
        record = _bench(options, console)
    console.print(LEGEND, markup=False, highlight=False, soft_wrap=True)
    if options.record:
        write_record(RECORD, record)
        write_readme("bench", readme_table(record.results))
    if options.plot:
        plot_roofline(options.plot, record.results)


def _bench(options: argparse.Namespace, console: Console) -> Record:
    """Time the layers one after the other; what is done is kept after each."""
    torch.set_num_threads(THREADS)
    limits = Limits(THREADS)
    results, refusals = list[Result](), list[Refusal]()
    for layer in options.layers:
        found, refused = bench_layer(layer, limits, options, console)
        results, refusals = results + found, refusals + refused
        _show(found, refused, console)
        if options.json:
            write_record(options.json, Record(machine(), results, refusals))
    return Record(machine(), results, refusals)


def _show(results: Sequence[Result], refusals: Sequence[Refusal], console: Console) -> None:
    for table in case_tables(results, refusals):
        console.print(table)


if __name__ == "__main__":
    main()
