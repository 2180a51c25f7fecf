"""Keep results with the machine they are from, and show them in the README."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from moe_bench.measure import Result
from moe_bench.sessions import THREADS

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "scripts" / "bench_moe.json"
README = ROOT / "README.md"
PACKAGES = ("moe-export", "onnxruntime", "torch", "transformers", "numpy")


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write results, the machine and versions as JSON."""
    kept = {"machine": machine(), "results": [asdict(result) for result in results]}
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, str]:
    """What the results were measured on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((li.split(":")[1].strip() for li in lines if li.startswith("model name")), "")
    versions = {package: metadata.version(package) for package in PACKAGES}
    return {"cpu": name or platform.machine(), "threads": str(THREADS), **versions}


def write_readme(results: Sequence[Result]) -> None:
    """Replace the README's table between its markers."""
    text = README.read_text(encoding="utf-8")
    start = text.index("<!-- bench -->\n") + len("<!-- bench -->\n")
    end = text.index("<!-- end bench -->", start)
    README.write_text(text[:start] + readme_table(results) + text[end:], encoding="utf-8")


def readme_table(results: Sequence[Result]) -> str:
    """A row for each of our results: the best peer's time over ours, and our shares."""
    lines = [
        "| layer | tokens | routing | weights | best peer | peer / ours | read | peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: Mapping[Any, list[Result]] = _grouped(results)
    for group in groups.values():
        peers = sorted((r for r in group if not r.ours), key=lambda r: r.seconds)
        for own in (r for r in group if r.ours):
            best, ratio = (
                ("", "")
                if not peers
                else (peers[0].contender, f"{peers[0].seconds / own.seconds:.2f}")
            )
            cells = (
                own.layer,
                own.tokens,
                "skewed" if own.skewed else "uniform",
                own.width,
                best,
                ratio,
                f"{own.read_share:.0%}",
                f"{own.peak_share:.0%}",
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _grouped(results: Sequence[Result]) -> dict[Any, list[Result]]:
    """Results by layer, tokens, routing and width: what is compared with each other."""
    groups: dict[Any, list[Result]] = {}
    for result in results:
        key = (result.layer, result.tokens, result.skewed, result.width)
        groups.setdefault(key, []).append(result)
    return groups
