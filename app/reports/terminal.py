"""Shared parts of the reports on a terminal: the console, tables, and formats of figures."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


class PatientConsole(Console):
    """A console that drops its output once the reader of stdout has closed it, as `head` does.

    rich would end the process, with a status of another meaning and before the reports are written.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        discard_stdout()


def discard_stdout() -> None:
    """Send the rest of stdout to the null device, including what Python flushes when it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def waiting(console: Console, what: str) -> AbstractContextManager[object]:
    """Show `what` while the block runs."""
    return console.status(f"{escape(what)} …")


def table(*headings: str, numbers: int = 0) -> Table:
    """Return an empty table with these columns; the last `numbers` columns are aligned right."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(headings))
    for number, heading in enumerate(headings):
        made.add_column(heading, justify="right" if number >= len(headings) - numbers else "left")
    return made


def dimmed(text: str) -> str:
    """Return markup that shows `text` in a lighter colour."""
    return f"[dim]{escape(text)}[/dim]"


def between(lower: str, upper: str) -> str:
    """Return a range of two figures, as for quartiles."""
    return f"{lower}–{upper}"  # noqa: RUF001 - the sign for ranges
