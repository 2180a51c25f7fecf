"""Whether one request can change another's result is measured, whatever the layer says of it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import moe_export
from moe_export.cli.main import main
from tests.zoo import catalog
from tests.zoo.classic.switch_top1 import SwitchTop1
from tests.zoo.layer import floats, made

LAYERS = {layer.name: layer for layer in catalog.CLASSIC}
SAYS = "batch-coupled: one request can change another's result"


@pytest.mark.parametrize(
    ("name", "coupled"),
    [
        ("gshard_top2", True),  # all tokens of a call compete for capacity
        ("gshard_top2_per_sequence", False),  # tokens of one sequence compete
        ("expert_choice_vmoe", True),  # experts choose within the call
        ("mixtral", False),
    ],
)
def test_it_is_measured_recorded_and_shown(tmp_path, monkeypatch, name, coupled):
    monkeypatch.chdir(tmp_path)
    assert LAYERS[name].coupled is coupled
    runner = CliRunner()
    built = runner.invoke(main, ["build", f"tests.cli.models:{name}", "-o", "b", "-q"])
    assert built.exit_code == 0, built.output
    shown = runner.invoke(main, ["inspect", "b"])
    assert (SAYS in built.stdout, SAYS in shown.stdout) == (coupled, coupled)
    manifest = json.loads(runner.invoke(main, ["inspect", "b", "--json"]).stdout)["manifest"]
    assert manifest["batch_coupled"] is coupled


def test_a_capacity_that_few_tokens_do_not_reach(tmp_path):
    """It is 16 in the sweep: 15 tokens fit, and of 128 the first sample's come first."""
    model = made(SwitchTop1, min_capacity=16, capacity_factor=0.5)()
    bundle = moe_export.build(model, floats(2, 6, 24)(), output=tmp_path / "b")
    assert bundle.manifest.batch_coupled
