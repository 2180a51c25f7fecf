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
    """List the model families that were tried: exported with parity, or why they are refused.

    Any other transformers family whose experts go through its experts hook takes the same way; it
    is proved when it is built, or refused.
    """
    recorded = read_families()

    def draw() -> None:
        console = stdout()
        exported = [f for f in recorded["families"] if f["status"] == "exported"]
        rows = [
            (f["family"], f["architecture"], f["expert"], "; ".join(f["routers"]),
             format_error(f["max_error"]))
            for f in exported
        ]  # fmt: skip
        console.print(make_table("", ("family", "architecture", "expert", "router", "error"), rows))
        for family in recorded["families"]:
            if family["status"] != "exported":
                console.print(f"{family['family']}: {family['status']}: {family['reason']}\n")
        versions = ", ".join(f"{name} {version}" for name, version in recorded["versions"].items())
        console.print(
            f"{len(exported)} of {len(recorded['families'])} families exported: small random models"
            f" of two MoE layers, float32, target cpu; {versions}"
        )

    output.emit(recorded, draw)
