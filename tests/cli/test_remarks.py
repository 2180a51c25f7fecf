"""What a layer's reading has to say shows while building, in the manifest and in ``inspect``."""

from __future__ import annotations

import dataclasses
import json

from click.testing import CliRunner

from moe_export import pipeline
from moe_export.cli.main import main

CAPACITY = "a size of ceil(1/4 · axis 0) was inferred from eager's numbers"
RESULT = "result 1 is not computed in the export: it counts calls"


def test_remarks_of_a_layer_are_shown_and_recorded(tmp_path, monkeypatch):
    recognize = pipeline.recognize

    def with_remarks(loaded, progress, *, keep_going):
        found = recognize(loaded, progress, keep_going=keep_going)
        first = dataclasses.replace(found.blocks[0], remarks=(CAPACITY, RESULT))
        progress.remark(f"0: {CAPACITY}")  # recognition tells of some itself
        return dataclasses.replace(found, blocks=(first, *found.blocks[1:]))

    monkeypatch.setattr(pipeline, "recognize", with_remarks)
    monkeypatch.chdir(tmp_path)
    source = "tests.cli.models:two_layers"
    runner = CliRunner()
    built = runner.invoke(main, ["build", source, "-o", "b", "-q", "--no-verify"])
    dry = runner.invoke(main, ["build", source, "--dry-run", "-q"])
    for text in (built.stderr, dry.stderr):
        assert text.count(f"note: 0: {CAPACITY}") == 1
        assert text.count(f"note: 0: {RESULT}") == 1
    shown = runner.invoke(main, ["inspect", "b"])
    assert f"note: 0: {RESULT}" in shown.stdout
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["remarks"] == [f"0: {CAPACITY}", f"0: {RESULT}"]
    assert manifest["layers"][0]["remarks"] == [CAPACITY, RESULT]
