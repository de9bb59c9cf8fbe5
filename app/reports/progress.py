"""How far a job over images is, on stderr: a bar with rate and time left, or lines now and then where nobody watches a
terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

# Often enough to see that it goes on, in a log that is kept.
_LINE_EVERY_S = 30.0


class ComparisonProgress:
    """What a job tells while it runs: `advance` for images done, `say` for a line that stays."""

    def __init__(self, console: Console, bar: Progress, what: str, *, total: int, done: int) -> None:
        self._console = console
        self._bar = bar
        self._what = what
        self._total = total
        self._done = self._done_before = done
        self._task = bar.add_task(escape(what), total=total, completed=done)
        self._started_at = self._told_at = perf_counter()

    @property
    def done(self) -> int:
        """Images done, those of an earlier run included."""
        return self._done

    @property
    def per_second(self) -> float:
        """Images of this run by its time so far."""
        return (self._done - self._done_before) / max(perf_counter() - self._started_at, 1e-9)

    def advance(self, images: int) -> None:
        self._done += images
        self._bar.advance(self._task, images)
        if not self._console.is_terminal and perf_counter() - self._told_at >= _LINE_EVERY_S:
            self._told_at = perf_counter()
            self.say(self._line())

    def say(self, line: str) -> None:
        """Print `line` as it is, above the bar where there is one."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _line(self) -> str:
        rate = self.per_second
        left = timedelta(seconds=round((self._total - self._done) / rate)) if rate else "?"
        return f"{self._what}: {self._done} of {self._total}, {rate:.1f} images/s, {left} left"


@contextmanager
def course(what: str, total: int, *, done: int = 0) -> Iterator[ComparisonProgress]:
    """A bar for `total` images, of which an earlier run has `done` some; it stays when the job has ended."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        # All of it fits into 80 columns.
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TextColumn("[dim]left[/dim]"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=60) as bar:
        yield ComparisonProgress(console, bar, what, total=total, done=done)


class _Rate(ProgressColumn):
    """Images a second of late."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} images/s", style="progress.data.speed")
