"""The README's table of classic systems is the one that was recorded last, for every system."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from tests.zoo.catalog import CLASSIC

ROOT = Path(__file__).resolve().parents[2]


def load_script():
    path = ROOT / "scripts" / "record_zoo.py"
    spec = importlib.util.spec_from_file_location("record_zoo", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_every_system_is_recorded_and_shown():
    script = load_script()
    rows = json.loads(script.RECORD.read_text(encoding="utf-8"))["systems"]
    assert [row["system"] for row in rows] == [layer.name for layer in CLASSIC]
    table = script.recorded_table(script.README.read_text(encoding="utf-8"))
    assert table == script.readme_table(rows)


def test_batch_coupling_is_measured_right():
    script = load_script()
    rows = json.loads(script.RECORD.read_text(encoding="utf-8"))["systems"]
    known = {layer.name: layer.coupled for layer in CLASSIC if layer.coupled is not None}
    for row in rows:
        if row["system"] in known and "refused" not in row:
            assert row["batch_coupled"] is known[row["system"]], row["system"]
