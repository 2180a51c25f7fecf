"""Keep results with the machine they are from, and show them in the README."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moe_bench.contenders import MODULES
from moe_bench.results import Refusal, Result
from moe_bench.sessions import THREADS

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "scripts" / "bench_moe.json"
README = ROOT / "README.md"
PACKAGES = ("moe-export", "onnxruntime", "torch", "transformers", "numpy")


def write_results(path: Path, results: Sequence[Result], refusals: Sequence[Refusal] = ()) -> None:
    """Write results, refusals, the machine and versions as JSON."""
    lists = {
        "results": [_rounded(asdict(result)) for result in results],
        "refusals": [asdict(refusal) for refusal in refusals],
    }
    # A line for each result, so that a new record shows what changed.
    parts = [f'"machine": {json.dumps(machine(), indent=1)}']
    for name, records in lists.items():
        parts.append(f'"{name}": [\n' + ",\n".join(map(json.dumps, records)) + "\n]")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _rounded(result: Mapping[str, Any]) -> dict[str, Any]:
    """Four digits: no measurement has more."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in result.items()}


def machine() -> dict[str, str]:
    """What the results were measured on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((li.split(":")[1].strip() for li in lines if li.startswith("model name")), "")
    peers = [package for package, module in MODULES.items() if find_spec(module)]
    versions = {package: metadata.version(package) for package in (*PACKAGES, *peers)}
    return {"cpu": name or platform.machine(), "threads": str(THREADS), **versions}


def write_readme(mark: str, table: str) -> None:
    """Replace what the README has between ``<!-- mark -->`` and ``<!-- end mark -->``."""
    text = README.read_text(encoding="utf-8")
    begin = f"<!-- {mark} -->\n"
    start = text.index(begin) + len(begin)
    end = text.index(f"<!-- end {mark} -->", start)
    README.write_text(text[:start] + table + text[end:], encoding="utf-8")


def read_results(path: Path) -> tuple[list[Result], list[Refusal]]:
    """What :func:`write_results` wrote."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    refusals = [Refusal(**refusal) for refusal in kept["refusals"]]
    return [Result(**result) for result in kept["results"]], refusals
