"""Export every model family of the tests and record what came of it.

``moe-export families`` and the README's table are made from the record. Run this after a change
to recognition or kernels, or to the list of families; name families to record only those again:

    python scripts/record_families.py
    python scripts/record_families.py qwen3_moe mixtral

Each family is exported in a process of its own, so that one that hangs does not lose the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "moe_export" / "families.json"
README = ROOT / "README.md"
PACKAGES = ("torch", "transformers", "onnxruntime")
LIMIT_S = 600
ALIGNMENT = "|---|---|---|---|"

Row = dict[str, Any]


def record_one(name: str) -> Row:
    """Build one family here and describe its bundle, or why there is none."""
    sys.path.insert(0, str(ROOT))
    import moe_export
    from moe_export.errors import UnsupportedModelError
    from tests.families.all_families import find_family
    from tests.families.catalogue import make_model
    from tests.families.sweep import sweep_errors

    family = find_family(name)
    model = make_model(family)
    row: Row = {"family": name, "architecture": type(model).__name__}
    inputs = family.inputs(0) if family.inputs else None
    with tempfile.TemporaryDirectory() as folder:
        try:
            bundle = moe_export.build(model, inputs, output=Path(folder) / "bundle")
        except UnsupportedModelError as error:
            return {**row, "status": "refused", "reason": str(error).splitlines()[0]}
        manifest = bundle.manifest
        errors = [manifest.parity["max_error"], *sweep_errors(family, model, bundle).values()]
    return {
        **row,
        "status": "exported",
        "layers": len(manifest.layers),
        **_experts(manifest.layers[0]["experts"]),
        "routers": list(dict.fromkeys(_router(layer) for layer in manifest.layers)),
        "targets": [manifest.target],
        "max_error": max(errors),
    }


def _router(layer: Row) -> str:
    return str(layer["routing"]) if layer["router"] == "TopKGating" else "own operators"


def _experts(experts: Row) -> Row:
    if "activation" not in experts:
        return {"experts": experts["num_experts"], "expert": f"unfused: {experts['operators']}"}
    words = [experts["activation"], "gated" if experts["gated"] else "ungated"]
    if experts.get("limit"):
        words.append(f"clamped at {experts['limit']:g}")
    if experts["has_bias"]:
        words.append("bias")
    return {"experts": experts["num_experts"], "expert": ", ".join(words)}


def record_apart(name: str) -> Row:
    """Record one family in a process of its own, within ``LIMIT_S`` seconds."""
    command = [sys.executable, __file__, "--here", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"family": name, "status": "failed", "reason": f"not done after {LIMIT_S} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        row: Row = json.loads(lines[-1])
        return row
    last = next((line for line in done.stderr.splitlines()[::-1] if "Error" in line), "no output")
    return {"family": name, "status": "failed", "reason": last[:300]}


def readme_table(rows: list[Row]) -> str:
    """The README's table of families."""
    lines = ["| family | expert | router | error |", ALIGNMENT]
    for row in rows:
        if row["status"] == "exported":
            cells = (row["expert"], "; ".join(row["routers"]), f"{row['max_error']:.0e}")
        else:
            cells = ("", f"{row['status']}: {row['reason']}".replace("|", "/"), "")
        lines.append(f"| {row['family']} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def write_readme(rows: list[Row]) -> None:
    """Replace the table between its markers."""
    text = README.read_text(encoding="utf-8")
    start = text.index("<!-- families -->\n") + len("<!-- families -->\n")
    end = text.index("<!-- end -->", start)
    README.write_text(text[:start] + readme_table(rows) + "\n" + text[end:], encoding="utf-8")


def write_record(rows: list[Row]) -> None:
    """Put ``rows`` in place of the recorded ones of the same families, at once for each row."""
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))["families"]
    merged = {row["family"]: row for row in [*recorded, *rows]}
    ordered = [merged[name] for name in sorted(merged)]
    versions = {name: metadata.version(name) for name in PACKAGES}
    text = json.dumps({"versions": versions, "families": ordered}, indent=2)
    RECORD.write_text(text + "\n", encoding="utf-8")
    write_readme(ordered)


def main() -> None:
    """Record the named families, or all."""
    sys.path.insert(0, str(ROOT))
    from tests.families.all_families import FAMILIES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="names; all if none is given")
    parser.add_argument("--here", action="store_true", help="print one row, write nothing")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(record_one(options.families[0])))
        return
    for name in options.families or [family.name for family in FAMILIES]:
        row = record_apart(name)
        print(json.dumps(row), flush=True)
        write_record([row])


if __name__ == "__main__":
    main()
