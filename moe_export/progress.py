"""What a stage tells the person who waits: its name, its steps and what is worth a remark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


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
