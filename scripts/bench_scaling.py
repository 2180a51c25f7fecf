"""Show that our time is linear in tokens, flat in experts, and hardly spent on choosing them.

    python scripts/bench_scaling.py                  # bf16 weights
    python scripts/bench_scaling.py --weights fp32 --record

Two threads; what is compared takes turns, and before each call so much other memory is read that no
expert is in the cache. Times are the least of all rounds; a router's has its session's call in it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from moe_bench.record import write_readme
from moe_bench.scaling import (
    EXPERTS_TOKENS,
    GATINGS,
    NUM_HIT,
    Label,
    Runs,
    bind_experts,
    bind_gatings,
    bind_tokens,
    time_in_turns,
)
from moe_bench.sessions import THREADS

from moe_export.benchmark.limits import Limits

Times = Mapping[Label, float]
_TOKENS = [128, 256, 512, 1024, 2048]
_EXPERTS = [8, 32, 128, 512]
_GATING_TOKENS = [1, 16, 256, 1024]
# More than caches hold.
_FLUSH_BYTES = 256 << 20


def growth_table(tokens: Times, experts: Times) -> str:
    """Milliseconds per call, and per token or over the fewest experts."""
    lines = ["| tokens (64 experts) | ms | us per token |", "|---|---|---|"]
    for (_, count), seconds in tokens.items():
        lines.append(f"| {count} | {seconds * 1e3:.2f} | {seconds * 1e6 / count:.1f} |")
    title = f"experts ({EXPERTS_TOKENS} tokens on {NUM_HIT} of them)"
    lines += ["", f"| {title} | ms | over the fewest |", "|---|---|---|"]
    fewest = next(iter(experts.values()))
    for (_, count), seconds in experts.items():
        lines.append(f"| {count} | {seconds * 1e3:.2f} | {seconds / fewest:.2f} |")
    return "\n".join(lines) + "\n"


def gating_table(times: Times) -> str:
    """Share of each router in the time of router and experts."""
    title = "tokens (share of TopKGating, 256 choose 8)"
    lines = [f"| {title} | {' | '.join(GATINGS)} |", "|---|" + "---|" * len(GATINGS)]
    for count in dict.fromkeys(count for _, count in times):
        experts = times["experts", count]
        parts = [times[name, count] for name in GATINGS]
        cells = [f"{part / (part + experts):.1%}" for part in parts]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Time the three and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", choices=["fp32", "bf16", "int8", "int4"], default="bf16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where weights are written meanwhile")
    parser.add_argument("--most-experts", type=int, default=_EXPERTS[-1])
    parser.add_argument("--record", action="store_true", help="keep the tables in the README")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        limits = Limits(THREADS)
        experts = [count for count in _EXPERTS if count <= options.most_experts]
        binders: dict[str, Callable[[], Runs]] = {
            "tokens": lambda: bind_tokens(folder, options.weights, _TOKENS),
            "experts": lambda: bind_experts(folder, options.weights, experts),
            "gating": lambda: bind_gatings(folder, options.weights, _GATING_TOKENS),
        }
        times = {
            name: time_in_turns(bind(), options.rounds, lambda: limits.read_bandwidth(_FLUSH_BYTES))
            for name, bind in binders.items()
        }
    growth = growth_table(times["tokens"], times["experts"])
    gating = gating_table(times["gating"])
    tables = f"{options.weights} weights:\n\n{growth}\n{gating}"
    print(tables, end="")
    if options.record:
        write_readme("scaling", tables)


if __name__ == "__main__":
    main()
