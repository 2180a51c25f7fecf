"""Keep results with the machine they are from, and show them in the README."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Record:
    """What is kept of one or more runs on one machine."""

    machine: Mapping[str, str]
    results: Sequence[Result]
    refusals: Sequence[Refusal]


def write_record(path: Path, record: Record) -> None:
    """Write results, refusals, the machine and versions as JSON."""
    lists = {
        "results": [_rounded(asdict(result)) for result in record.results],
        "refusals": [asdict(refusal) for refusal in record.refusals],
    }
    # A line for each result, so that a new record shows what changed.
    parts = [f'"machine": {json.dumps(record.machine, indent=1)}']
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


def read_records(paths: Sequence[Path]) -> Record:
    """What :func:`write_record` wrote in one or more runs.

    Raises:
        ValueError: Two are not of the same machine and versions.
    """
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    for path, each in zip(paths, kept, strict=True):
        if each["machine"] != kept[0]["machine"]:
            raise ValueError(f"{path} is of another machine or other versions than {paths[0]}")
    return Record(
        kept[0]["machine"],
        [Result(**result) for each in kept for result in each["results"]],
        [Refusal(**refusal) for each in kept for refusal in each["refusals"]],
    )
