"""Progress on stderr: a bar on a terminal; elsewhere, for jobs over images, a line from time to time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from gradless import records

# Between the lines of a job whose stderr is no terminal.
_LINE_EVERY_S = 30.0


class JobProgress:
    """Progress of a job: `advance` counts images, `say` prints a line."""

    def __init__(self, console: Console, bar: Progress, what: str, *, total: int, done: int) -> None:
        self._console = console
        self._bar = bar
        self._what = what
        self._total = total
        self._done = self._done_before = done
        self._task = bar.add_task(escape(what), total=total, completed=done)
        self._started_at = self._line_at = perf_counter()

    @property
    def per_second(self) -> float:
        """Images per second of this run."""
        return (self._done - self._done_before) / max(perf_counter() - self._started_at, 1e-9)

    def advance(self, images: int) -> None:
        self._done += images
        self._bar.advance(self._task, images)
        if not self._console.is_terminal and perf_counter() - self._line_at >= _LINE_EVERY_S:
            self._line_at = perf_counter()
            self.say(self._line())

    def say(self, line: str) -> None:
        """Print `line` unchanged, above the bar if there is one."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _line(self) -> str:
        rate = self.per_second
        left = timedelta(seconds=round((self._total - self._done) / rate)) if rate else "?"
        return f"{self._what}: {self._done} of {self._total}, {rate:.1f} images/s, {left} left"


@contextmanager
def job_progress(what: str, total: int, *, done: int = 0) -> Iterator[JobProgress]:
    """Show a bar for `total` images, of which an earlier run has `done` some. The bar stays when the block ends."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        # Fits into 80 columns with the rest.
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TextColumn("[dim]left[/dim]"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=60) as bar:
        yield JobProgress(console, bar, what, total=total, done=done)


@contextmanager
def comparison_progress(console: Console) -> Iterator[Callable[[records.Progress], None]]:
    """Show a bar that the returned function moves; it disappears when the block ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("trying a batch of one", total=None)

        def move(progress: records.Progress) -> None:
            bar.update(task, description=progress.stage, completed=progress.done, total=progress.total)

        yield move


class _Rate(ProgressColumn):
    """Recent images per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} images/s", style="progress.data.speed")
