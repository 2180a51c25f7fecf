"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from moe_export.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_layer_of_your_own(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    (code,) = [block for block in blocks if "class MyMoE" in block]
    (tmp_path / "my_code.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    result = CliRunner().invoke(main, ["build", "my_code:make_model", "-o", "bundle"])
    assert result.exit_code == 0, result.output
    assert "registered" in result.stdout


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`((?:moe_export|plugins|scripts|samples)/[\w./]+)`", README)))
)
def test_named_files_exist(name):
    assert (ROOT / name).exists()


def test_every_command_and_option_exists():
    options = set(re.findall(r"(?<![\w-])--([a-z][\w-]+)", README)) - {"trust-remote-code"}
    known = {
        option.lstrip("-")
        for command in main.commands.values()
        for parameter in command.params
        for option in parameter.opts
    }
    assert options <= known | {"help"}
