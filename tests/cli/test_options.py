"""How commands end."""

from __future__ import annotations

import json

import click
from click.testing import CliRunner

from moe_export.cli.options import common_options
from moe_export.errors import ParityError


@click.command()
@click.option("--late", is_flag=True)
@common_options
def command(late, output):
    """Fails before or after its result was printed."""
    if late:
        output.emit({"bundle": "b"}, lambda: click.echo("b"))
    raise ParityError("differs")


def test_json_is_one_document_when_a_command_fails_after_its_result():
    result = CliRunner().invoke(command, ["--late", "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (1, {"bundle": "b"})
    assert "differs" in result.stderr


def test_json_is_the_error_when_there_is_no_result():
    result = CliRunner().invoke(command, ["--json"])
    assert json.loads(result.stdout)["error"]["kind"] == "ParityError"
