"""An evaluation on a terminal, for people."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.offline.evaluating import Evaluation

# Classes that are worth a line: there may be thousands.
_CLASSES = 10


def show(evaluation: Evaluation, console: Console) -> None:
    images = evaluation.images
    left = f", {evaluation.without_answer} without an answer" if evaluation.without_answer else ""
    console.print(f"Top-1: {_percent(evaluation.top1)}")
    console.print(f"Top-5: {_percent(evaluation.top5)}")
    console.print(f"Calibration error: {_percent(evaluation.calibration_error)}")
    console.print(f"[dim]{escape(evaluation.model)}, {images} images{left}[/dim]")
    if evaluation.classes:
        console.print(_classes(evaluation))
    if evaluation.confusions:
        console.print(_confusions(evaluation))


def _classes(evaluation: Evaluation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("worst classes")
    for heading in ("images", "top-1", "top-5"):
        table.add_column(heading, justify="right")
    for score in evaluation.classes[:_CLASSES]:
        table.add_row(
            escape(score.label),
            str(score.images),
            _percent(score.first / score.images),
            _percent(score.among_five / score.images),
        )
    if len(evaluation.classes) > _CLASSES:
        table.add_row(f"[dim]{len(evaluation.classes) - _CLASSES} more[/dim]", "", "", "")
    return table


def _confusions(evaluation: Evaluation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("what is shown")
    table.add_column("taken for")
    table.add_column("images", justify="right")
    for confusion in evaluation.confusions:
        table.add_row(escape(confusion.truth), escape(confusion.taken_for), f"{confusion.images} of {confusion.of}")
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
