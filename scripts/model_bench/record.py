"""Keep results with the machine they are from, and show them in the README."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from model_bench.model import Sizes

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "scripts" / "bench_model.json"
README = ROOT / "README.md"
PACKAGES = ("moe-export", "onnxruntime", "torch", "transformers", "openvino", "numpy")
_START, _END = "<!-- model bench -->\n", "<!-- end model bench -->"


@dataclass(frozen=True)
class Result:
    """One contender on one kind of run.

    Attributes:
        case: Kind of run.
        tokens: That a run adds.
        contender: Who ran.
        ours: Whether it is this library.
        seconds: Median over all runs.
        runs: How many.
        error: Root mean square of the logits' difference from float64, over the logits'.
    """

    case: str
    tokens: int
    contender: str
    ours: bool
    seconds: float
    runs: int
    error: float


def write_results(path: Path, sizes: Sizes, results: Sequence[Result], threads: int) -> None:
    """Write results, the model's sizes, the machine and versions as JSON."""
    kept = {
        "machine": machine(threads),
        "model": asdict(sizes),
        "results": [asdict(result) for result in results],
    }
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def machine(threads: int) -> dict[str, str]:
    """What the results were measured on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((li.split(":")[1].strip() for li in lines if li.startswith("model name")), "")
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"cpu": name or platform.machine(), "threads": str(threads), **versions}


def write_readme(results: Sequence[Result]) -> None:
    """Replace the README's table between its markers."""
    text = README.read_text(encoding="utf-8")
    start = text.index(_START) + len(_START)
    end = text.index(_END, start)
    README.write_text(text[:start] + readme_table(results) + text[end:], encoding="utf-8")


def readme_table(results: Sequence[Result]) -> str:
    """A row per contender: of each kind of run its time, our float32's advantage and its error."""
    cases = list(dict.fromkeys(result.case for result in results))
    lines = [
        "| contender | " + " | ".join(f"{case}, ms | over ours | error" for case in cases) + " |",
        "|---" * (1 + 3 * len(cases)) + "|",
    ]
    by_contender: dict[str, dict[str, Result]] = {}
    for result in results:
        by_contender.setdefault(result.contender, {})[result.case] = result
    ours = {case: _first_of_ours(results, case) for case in cases}
    for name, found in by_contender.items():
        cells = [name]
        for case in cases:
            cells += _cells(found.get(case), ours[case])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _first_of_ours(results: Sequence[Result], case: str) -> float | None:
    return next((r.seconds for r in results if r.ours and r.case == case), None)


def _cells(result: Result | None, ours: float | None) -> list[str]:
    if result is None:
        return ["-", "-", "-"]
    ratio = "-" if ours is None else f"{result.seconds / ours:.2f}"
    return [f"{result.seconds * 1e3:.1f}", ratio, f"{result.error:.0e}"]


def read_results(path: Path) -> tuple[Mapping[str, str], list[Result]]:
    """The machine and the results of ``write_results``."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    return kept["machine"], [Result(**result) for result in kept["results"]]
