"""Options that every command has, and the way errors end a command."""

from __future__ import annotations

import functools
import json
import signal
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click

from moe_export.errors import MoeExportError


@dataclass
class Output:
    """How a command speaks.

    Attributes:
        as_json: Results are JSON, one document.
        verbosity: Above 0 says more, below 0 shows no progress.
        emitted: Whether the result was printed.
    """

    as_json: bool
    verbosity: int
    emitted: bool = False

    def emit(self, values: Any, draw: Callable[[], None]) -> None:  # noqa: ANN401 - any JSON
        """Print ``values`` as JSON, or draw them for people."""
        self.emitted = True
        if self.as_json:
            click.echo(json.dumps(values, indent=2, default=str))
        else:
            draw()


def _read_config(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is None:
        return
    try:
        defaults = tomllib.loads(value.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise click.BadParameter(f"{value}: {error}") from error
    parameters = context.command.params
    known = {option.lstrip("-"): p.name for p in parameters for option in p.opts}
    if unknown := sorted(set(defaults) - set(known)):
        raise click.BadParameter(f"{value}: {context.command.name} has no option {unknown[0]}")
    context.default_map = {str(known[name]): setting for name, setting in defaults.items()}


def common_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add ``--json``, ``-v``, ``-q`` and ``--config``; the command receives an ``Output``."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @click.option("-v", "--verbose", is_flag=True, help="Say more.")
    @click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
    @click.option(
        "--config",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        callback=_read_config,
        is_eager=True,
        expose_value=False,
        help="TOML file with defaults for this command's options.",
    )
    @functools.wraps(function)
    def command(*args: Any, as_json: bool, verbose: bool, quiet: bool, **kwargs: Any) -> None:  # noqa: ANN401
        output = Output(as_json, verbosity=int(verbose) - int(quiet))
        # A polite kill ends like Ctrl-C: what was begun is cleaned up.
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            function(*args, output=output, **kwargs)
        except MoeExportError as error:
            _fail(error, output)
        except KeyboardInterrupt:
            click.secho("interrupted: nothing was written", err=True, fg="red")
            raise SystemExit(130) from None
        finally:
            signal.signal(signal.SIGTERM, previous)

    return command


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(error: MoeExportError, output: Output) -> NoReturn:
    kind = type(error).__name__
    if output.as_json and not output.emitted:
        details = {"kind": kind, "message": str(error), "exit_code": error.exit_code}
        click.echo(json.dumps({"error": details}, indent=2))
    click.secho(f"error: {error}", err=True, fg="red")
    raise SystemExit(error.exit_code)
