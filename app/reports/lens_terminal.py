"""The lens on a terminal: what it is doing, and what it found, for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.api.lens_schemas import Arm, GradModes
from gradless import records
from gradless.units import in_bytes, in_seconds

# Modules that are worth a line: there are hundreds.
_MODULES = 5


class PatientConsole(Console):
    """A console whose reader may leave, as `head` does: what it would have read is dropped. rich itself ends the
    process then, with a status that means something else here and before the reports are written."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        leave_stdout()


def leave_stdout() -> None:
    """Nobody reads it any more: what is left to say there goes nowhere, also what Python flushes at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def waiting(console: Console, what: str) -> AbstractContextManager[object]:
    """Say `what` while it lasts."""
    return console.status(f"{escape(what)} …")


@contextmanager
def counted(console: Console) -> Iterator[Callable[[records.Progress], None]]:
    """A bar on `console`, moved by what is told to the function, and gone at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("trying a batch of one", total=None)

        def tell(progress: records.Progress) -> None:
            bar.update(task, description=progress.stage, completed=progress.done, total=progress.total)

        yield tell


def show(report: GradModes, console: Console) -> None:
    _by_hand(report, console)
    console.print(_arms(report))
    for arm in report.arms:
        if arm.peak_note is not None:
            console.print(f"[dim]No peak for {arm.arm}: {escape(arm.peak_note)}.[/dim]")
    if report.modules:
        console.print(_modules(report))
    if report.sweep:
        console.print(_sweep(report))
    console.print()
    sentences = Table.grid(padding=(0, 1))
    for sentence in report.sentences:
        sentences.add_row("•", escape(sentence))
    console.print(sentences)


def _by_hand(report: GradModes, console: Console) -> None:
    """The experiment that everybody writes first."""
    arms = {arm.arm: arm for arm in report.arms}
    if "grad" in arms and "no_grad" in arms:
        console.print(f"With gradient calculation: {arms['grad'].seconds.median:.3f} s")
        console.print(f"Without: {arms['no_grad'].seconds.median:.3f} s")
    console.print(
        f"[dim]{escape(report.model)} on {report.device}, batches of {report.batch_size} of "
        f"{escape(report.input)}, {report.iterations} round{'s' * (report.iterations != 1)}, "
        f"PyTorch {report.torch}; served by {report.backend} in {report.dtype}[/dim]"
    )


def _arms(report: GradModes) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("arm", no_wrap=True)
    for heading in ("time", "quartiles", "peak", "kept", "backward"):
        table.add_column(heading, justify="right")
    for arm in report.arms:
        style = "bold" if arm.arm == "served" else None
        table.add_row(
            arm.arm,
            in_seconds(arm.seconds.median),
            _quartiles(arm),
            "?" if arm.peak_bytes is None else in_bytes(arm.peak_bytes),
            in_bytes(arm.retained_bytes) if arm.retained_bytes else "nothing",
            "works" if arm.backward.works else "fails",
            style=style,
        )
    return table


def _quartiles(arm: Arm) -> str:
    """Without the unit, which is the median's, where they share it."""
    lower, upper = in_seconds(arm.seconds.lower_quartile), in_seconds(arm.seconds.upper_quartile)
    if lower.split()[1] == upper.split()[1] == in_seconds(arm.seconds.median).split()[1]:
        lower, upper = lower.split()[0], upper.split()[0]
    return f"{lower}–{upper}"  # noqa: RUF001 - as ranges are set


def _modules(report: GradModes) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("kept for backward by module")
    table.add_column("type")
    table.add_column("bytes", justify="right")
    for module in report.modules[:_MODULES]:
        table.add_row(escape(module.module or "(itself)"), module.type, in_bytes(module.retained_bytes))
    rest = report.modules[_MODULES:]
    if rest:
        table.add_row(f"[dim]{len(rest)} more[/dim]", "", in_bytes(sum(module.retained_bytes for module in rest)))
    return table


def _sweep(report: GradModes) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("time, batch of", no_wrap=True)
    for point in report.sweep:
        table.add_column(str(point.batch_size), justify="right")
    for number, arm in enumerate(report.arms):
        table.add_row(arm.arm, *(in_seconds(point.arms[number].median_seconds) for point in report.sweep))
    grad = next((number for number, arm in enumerate(report.arms) if arm.arm == "grad"), None)
    if grad is not None:
        table.add_section()
        table.add_row("kept by grad", *(in_bytes(point.arms[grad].retained_bytes) for point in report.sweep))
    return table
