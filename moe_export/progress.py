"""What a stage tells the person who waits: its name, its steps and what is worth a remark."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes, pages of files included."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage counts what the process was before it became this program, too.
        line = next(li for li in status.read_text().splitlines() if li.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Progress(Protocol):
    """Receives progress; the command line draws it, the library ignores it by default.

    Attributes:
        remarks: What was remarked so far.
    """

    remarks: list[str]

    def stage(self, name: str) -> None:
        """A pipeline stage called ``name`` begins."""

    def track(self, items: Iterable[T], label: str) -> Iterator[T]:
        """Yield ``items`` and show how far along they are."""

    def remark(self, text: str) -> None:
        """Something the user should know that is no error."""


class SilentProgress:
    """Keeps remarks and shows nothing."""

    def __init__(self) -> None:
        self.remarks: list[str] = []

    def stage(self, name: str) -> None:
        """Ignore the stage."""

    def track(self, items: Iterable[T], label: str) -> Iterator[T]:
        """Yield ``items`` unchanged."""
        del label
        yield from items

    def remark(self, text: str) -> None:
        """Keep ``text``."""
        self.remarks.append(text)
