"""``--keep-going`` lists every refused layer; without it the first one ends the build."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import moe_export
from moe_export.cli.main import main
from moe_export.errors import UnsupportedModelError
from tests.cli import models


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def check_text(text):
    assert "2 of 4 MoE layers cannot be lowered" in text
    assert "1 (DropoutAlways): eager gives two answers" in text
    assert "3 (OnlyTwoRun) is not explained by its experts" in text
    assert "eager ran only experts 0, 1 of 6" in text
    assert "register_block" in text
    assert "recognized: 0, 2" in text


def test_all_refused_layers_are_listed_and_nothing_is_written(invoke, tmp_path):
    result = invoke("build", "tests.cli.models:some_refused", "-o", "b", "--keep-going", "-q")
    assert result.exit_code == 3
    check_text(result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_as_json(invoke):
    arguments = ("-o", "b", "--keep-going", "-q", "--json")
    result = invoke("build", "tests.cli.models:some_refused", *arguments)
    error = json.loads(result.stdout)["error"]
    assert error["exit_code"] == 3
    check_text(error["message"])


def test_in_python(tmp_path):
    model, x = models.some_refused()
    with pytest.raises(UnsupportedModelError) as caught:
        moe_export.build(model, x, output=tmp_path / "b", keep_going=True)
    check_text(str(caught.value))
    assert list(tmp_path.iterdir()) == []


def test_without_it_the_first_refusal_ends_the_build(invoke, tmp_path):
    result = invoke("build", "tests.cli.models:some_refused", "-o", "b", "-q")
    assert result.exit_code == 3
    assert "DropoutAlways" in result.stderr
    assert "OnlyTwoRun" not in result.stderr
    assert list(tmp_path.iterdir()) == []
