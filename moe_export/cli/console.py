"""Progress and tables for people."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from moe_export.progress import peak_memory

T = TypeVar("T")

_FILE_WIDTH = 200
_PATH_WIDTH = 26


def stdout() -> Console:
    """Console for results; in a file or a pipe nothing is cut to a terminal's width."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_FILE_WIDTH)


def shorten_path(path: str) -> str:
    """The end of a module's path, which tells layers apart, with an ellipsis where it is long."""
    if len(path) <= _PATH_WIDTH:
        return path or "<root>"
    return "…" + path[-_PATH_WIDTH + 1 :]


def make_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A plain table; columns after the first are right-aligned."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return table


def format_error(value: float | str | None) -> str:
    """A relative error in two digits, or a dash; the report writes an infinite one as text."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{float(value):.1e}"


class StageProgress:
    """Shows on stderr which stage runs, how long each took, and the memory it needed.

    Args:
        verbosity: Below 0 shows nothing but remarks.
    """

    def __init__(self, verbosity: int) -> None:
        self.remarks: list[str] = []
        self._console = Console(stderr=True, highlight=False)
        self._quiet = verbosity < 0
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            console=self._console,
            transient=True,
            disable=self._quiet or not self._console.is_terminal,
        )
        self._stage = ""
        self._began = 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._finish("failed" if kind else "done")
        self._bars.stop()

    def stage(self, name: str) -> None:
        """Begin a stage and report the one before."""
        self._finish("done")
        self._stage, self._began = name, time.monotonic()
        for task in self._bars.task_ids:
            self._bars.remove_task(task)
        self._bars.add_task(name, total=None)

    def track(self, items: Iterable[T], label: str) -> Iterator[T]:
        """Yield ``items`` and move a bar."""
        listed = list(items)
        task = self._bars.add_task(f"{self._stage}: {label}", total=len(listed))
        for item in listed:
            yield item
            self._bars.advance(task)
        self._bars.remove_task(task)

    def remark(self, text: str) -> None:
        """Print a remark and keep it."""
        self.remarks.append(text)
        self._console.print(f"note: {text}", style="yellow", soft_wrap=True)

    def _finish(self, outcome: str) -> None:
        if not self._stage or self._quiet:
            return
        seconds = time.monotonic() - self._began
        peak_mb = peak_memory() / (1 << 20)
        mark = "" if outcome == "done" else f"  {outcome}"
        self._console.print(f"{self._stage:<10} {seconds:6.1f} s  peak {peak_mb:6.0f} MB{mark}")
        self._stage = ""
