"""Time a whole Qwen3-MoE-shaped model: a prompt of 512 tokens, and one token behind it.

    python scripts/bench_model.py                            # float32, everyone
    python scripts/bench_model.py --weights fp32,bf16,int4   # our bundles in several widths
    python scripts/bench_model.py --layers 2 --experts 8     # to see what it prints
    python scripts/bench_model.py --folder models            # keeps what is exported

Contenders: bundles of this library, transformers in eager PyTorch, and what transformers itself
exports, in ONNX Runtime (a graph for prompts and one for steps, its own fusions) and in OpenVINO
(one graph that keeps its cache). They run in one process and take turns, with two threads each and
float32 activations; times are medians. The model is random, with half the width, experts and heads
of Qwen3-30B-A3B and 8 layers: 2.4 GB of experts. Errors are against float64, of all logits: with
random weights some tokens are close to two experts, so that rounding weights sends some elsewhere.
Prompts and steps are timed one after the other, since not all graphs fit in memory at once.
transformers writes a product per expert: exporting them takes most of the time. With a folder that
is kept, the next run begins with timing.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from model_bench.contenders import (
    Entry,
    bundle_entry,
    eager_entry,
    has_openvino,
    onnx_entry,
    openvino_entry,
)
from model_bench.model import Sizes, exact_logits, rms_error, write_checkpoint
from model_bench.record import RECORD, Result, write_readme, write_results
from rich.console import Console
from rich.table import Table

from moe_export.benchmark.cases import Case, draw_cases
from moe_export.benchmark.timing import time_runs
from moe_export.package.bundle import UnverifiedBundleWarning, load
from moe_export.runners.arrays import Array

THREADS = 2


def prepare_entries(
    folder: Path, sizes: Sizes, options: argparse.Namespace, console: Console
) -> tuple[list[Entry], Path]:
    """Export the model for everyone; also the folder of our first bundle."""
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        with console.status("writing the model"):
            write_checkpoint(sizes, checkpoint)
    entries: list[Entry] = []
    for weights in options.weights.split(","):
        with console.status(f"building our bundle, {weights}"):
            entries.append(bundle_entry(checkpoint, folder / weights, weights, THREADS))
    entries.append(eager_entry(checkpoint))
    peers: list[tuple[str, Callable[[Path, Path, int], Entry]]] = [("onnx", onnx_entry)]
    if has_openvino():
        peers.append(("openvino", openvino_entry))
    else:
        console.print("OpenVINO is left out: pip install 'moe-export[bench]'")
    for name, make in peers:
        if options.only_ours:
            break
        with console.status(f"exporting with transformers, {name}"):
            entries.append(make(checkpoint, folder / name, THREADS))
        gc.collect()
    return entries, folder / options.weights.split(",")[0]


@contextmanager
def models_folder(options: argparse.Namespace, sizes: Sizes) -> Iterator[Path]:
    """Where models are written: one folder per size where they are kept."""
    if options.folder is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    folder = options.folder / f"{sizes.num_hidden_layers}_layers_{sizes.num_experts}_experts"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def time_case(case: Case, entries: Sequence[Entry], exact: Array, rounds: int) -> list[Result]:
    """Load everyone for one kind of run, and let them take turns."""
    contenders = {entry.name: entry.load(case) for entry in entries}
    errors = {
        name: rms_error(contender.prepare(case, 0)()["logits"], exact)
        for name, contender in contenders.items()
    }
    seconds = time_runs([case], contenders, rounds, lambda _: None, lambda *_: None)
    return [
        Result(
            case.name,
            case.tokens,
            entry.name,
            entry.ours,
            float(np.median(seconds[entry.name, case.name])),
            len(seconds[entry.name, case.name]),
            errors[entry.name],
        )
        for entry in entries
    ]


def make_table(results: Sequence[Result]) -> Table:
    """One row per contender; the ratio is its time over our first bundle's."""
    table = Table(
        "contender", "ms", "over ours", "tokens/s", "runs", "error", title=results[0].case
    )
    own = next(result.seconds for result in results if result.ours)
    for result in results:
        table.add_row(
            result.contender,
            f"{result.seconds * 1e3:.1f}",
            f"{result.seconds / own:.2f}",
            f"{result.tokens / result.seconds:.1f}",
            str(result.runs),
            f"{result.error:.0e}",
        )
    return table


def main() -> None:
    """Time the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", default="fp32", help="of our bundles, such as fp32,bf16,int4")
    parser.add_argument("--layers", type=int, default=Sizes().num_hidden_layers)
    parser.add_argument("--experts", type=int, default=Sizes().num_experts)
    parser.add_argument("--tokens", type=int, default=512, help="of the prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only-ours", action="store_true", help="without what transformers exports"
    )
    parser.add_argument("--folder", type=Path, help="keeps models here for the next run: 14 GB")
    parser.add_argument("--json", type=Path, help="keep the results and the machine here")
    parser.add_argument("--record", action="store_true", help="keep them for the README's table")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UnverifiedBundleWarning)
    torch.set_num_threads(THREADS)
    console = Console()
    sizes = replace(Sizes(), num_hidden_layers=options.layers, num_experts=options.experts)
    results: list[Result] = []
    with models_folder(options, sizes) as folder:
        entries, first = prepare_entries(folder, sizes, options, console)
        cases = draw_cases(load(first, num_threads=THREADS), (options.tokens,), seed=0)
        with console.status("computing exact logits"):
            exact = exact_logits(folder / "checkpoint", cases)
        for case in cases:
            with console.status(case.name):
                found = time_case(case, entries, exact[case.name], options.rounds)
            gc.collect()
            results += found
            console.print(make_table(found))
    for path in [options.json] * bool(options.json) + [RECORD] * options.record:
        write_results(path, sizes, results, THREADS)
    if options.record:
        write_readme(results)


if __name__ == "__main__":
    main()
