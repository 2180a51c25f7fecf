"""Export every family of tests/parity and record the result for `moe-export families`.

Run after a change to recognition or kernels, or to the list of families.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import moe_export

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "moe_export" / "families.json"
README = ROOT / "README.md"
PACKAGES = ("torch", "transformers", "onnxruntime")


def record(family: str, folder: Path) -> dict[str, Any]:
    """Build one family and describe its bundle."""
    sys.path.insert(0, str(ROOT))
    from tests.parity.families import make_model

    model: Any = make_model(family)
    bundle = moe_export.build(model, output=folder / family)
    experts = bundle.manifest.layers[0]["experts"]
    config = model.config
    top_k = next(
        getattr(config, n)
        for n in ("num_experts_per_tok", "num_selected_experts")
        if hasattr(config, n)
    )
    return {
        "family": family,
        "architecture": type(model).__name__,
        "experts": experts["num_experts"],
        "top_k": top_k,
        "expert": experts["activation"] + (", gated" if experts["gated"] else ""),
        "router": bundle.manifest.layers[0]["router"],
        "targets": ["cpu"],
        "max_error": bundle.manifest.parity["max_error"],
    }


def readme_table(rows: list[dict[str, Any]]) -> str:
    """The README's table of families."""
    lines = ["| family | architecture | experts | top k | error |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (row["family"], row["architecture"], row["experts"], row["top_k"])
        error = f"{row['max_error']:.1e}"
        lines.append(f"| {' | '.join(map(str, cells))} | {error} |")
    return "\n".join(lines)


def write_readme(rows: list[dict[str, Any]]) -> None:
    """Replace the table between its markers."""
    text = README.read_text(encoding="utf-8")
    start = text.index("<!-- families -->\n") + len("<!-- families -->\n")
    end = text.index("<!-- end -->", start)
    README.write_text(text[:start] + readme_table(rows) + "\n" + text[end:], encoding="utf-8")


def main() -> None:
    """Record all families."""
    sys.path.insert(0, str(ROOT))
    from tests.parity.families import FAMILIES

    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for family in sorted(FAMILIES):
            rows.append(record(family, Path(folder)))
            print(json.dumps(rows[-1]))
    versions = {name: metadata.version(name) for name in PACKAGES}
    RECORD.write_text(json.dumps({"versions": versions, "families": rows}, indent=2) + "\n")
    write_readme(rows)


if __name__ == "__main__":
    main()
