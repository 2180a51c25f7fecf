"""Export every classic MoE system of tests/zoo and record how it was lowered, for the README.

Run after a change to recognition, optimization or kernels, or to the list of systems.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from moe_export.errors import UnsupportedModelError

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "tests" / "zoo" / "classic.json"
README = ROOT / "README.md"
PACKAGES = ("torch", "onnxruntime")
START, END = "<!-- zoo -->\n", "<!-- end -->"


def record(layer: Any, folder: Path) -> dict[str, Any]:  # noqa: ANN401 - a ZooLayer
    """Build one system, compare it with eager, and describe its bundle, or why it is refused."""
    harness: Any = importlib.import_module("tests.zoo.harness")
    try:
        bundle = harness.build(layer.make(), layer, folder / layer.name)
    except UnsupportedModelError as error:
        return {"system": layer.name, "refused": str(error)}
    described, nodes = bundle.manifest.layers[0], harness.nodes(bundle)
    ops = Counter(node.op_type for node in nodes if node.domain == "moe_export")
    fused = ops.pop("TopKGating", 0) > 0
    return {
        "system": layer.name,
        "found_as": described["kind"],
        "ops": dict(ops),
        "router_fused": fused,
        "router": described["routing"],
        "batch_coupled": bundle.manifest.batch_coupled,
        "max_error": bundle.manifest.parity["max_error"],
        "nodes": len(nodes),
    }


def readme_table(rows: list[dict[str, Any]]) -> str:
    """The README's table of classic systems."""
    lines = ["| system | experts | router fused | error | nodes |", "|---|---|---|---|---|"]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['system'].replace('_', ' ')} | refused | | | |")
            continue
        ops = ", ".join(f"{count} {op}" if count > 1 else op for op, count in row["ops"].items())
        router = row["router"] if row["router_fused"] else f"no: {row['router']}"
        error = f"{row['max_error']:.1e}"
        cells = (row["system"].replace("_", " "), ops, router, error, row["nodes"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def recorded_table(text: str) -> str:
    """The table that stands in the README's ``text``."""
    start = text.index(START) + len(START)
    return text[start : text.index(END, start)].strip("\n")


def write_readme(rows: list[dict[str, Any]]) -> None:
    """Replace the table between its markers."""
    text = README.read_text(encoding="utf-8")
    start = text.index(START) + len(START)
    end = text.index(END, start)
    README.write_text(text[:start] + readme_table(rows) + "\n" + text[end:], encoding="utf-8")


def main() -> int:
    """Record all systems; 1 if one is refused."""
    sys.path.insert(0, str(ROOT))
    from tests.zoo.catalog import CLASSIC

    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for layer in CLASSIC:
            rows.append(record(layer, Path(folder)))
            print(json.dumps(rows[-1]), flush=True)
    versions = {name: metadata.version(name) for name in PACKAGES}
    RECORD.write_text(json.dumps({"versions": versions, "systems": rows}, indent=2) + "\n")
    write_readme(rows)
    return int(any("refused" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
