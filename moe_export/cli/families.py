"""``moe-export families``."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import click

from moe_export.cli.console import format_error, make_table, stdout
from moe_export.cli.options import Output, common_options


def read_families() -> dict[str, Any]:
    """What ``scripts/record_families.py`` measured last."""
    text = resources.files("moe_export").joinpath("families.json").read_text(encoding="utf-8")
    recorded: dict[str, Any] = json.loads(text)
    return recorded


@click.command(epilog="Example: moe-export families --json")
@common_options
def families(output: Output) -> None:
    """List the model families that were exported and compared with eager.

    Any other transformers family whose experts go through its experts hook takes the same way; it
    is proved when it is built, or refused.
    """
    recorded = read_families()

    def draw() -> None:
        console = stdout()
        rows = [
            (f["family"], f["architecture"], f["experts"], f["top_k"], f["expert"],
             format_error(f["max_error"]))
            for f in recorded["families"]
        ]  # fmt: skip
        columns = ("family", "architecture", "experts", "top k", "expert", "error")
        console.print(make_table("", columns, rows))
        versions = ", ".join(f"{name} {version}" for name, version in recorded["versions"].items())
        console.print(f"small random models of two layers, float32, target cpu; {versions}")

    output.emit(recorded, draw)
