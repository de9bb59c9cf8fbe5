"""An evaluation on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.reports.terminal import dimmed, table
from models.offline.evaluating import Evaluation

# Classes shown: a model may have thousands.
_CLASSES = 10


def show(evaluation: Evaluation, console: Console) -> None:
    left_out = f", {evaluation.without_answer} could not be classified" if evaluation.without_answer else ""
    console.print(f"Top-1: {_percent(evaluation.top1)}")
    console.print(f"Top-5: {_percent(evaluation.top5)}")
    console.print(f"Calibration error: {_percent(evaluation.calibration_error)}")
    console.print(dimmed(f"{evaluation.model}, {evaluation.images} images{left_out}"))
    if evaluation.classes:
        console.print(_classes(evaluation))
    if evaluation.confusions:
        console.print(_confusions(evaluation))


def _classes(evaluation: Evaluation) -> Table:
    classes = table("worst classes", "images", "top-1", "top-5", numbers=3)
    for score in evaluation.classes[:_CLASSES]:
        classes.add_row(
            escape(score.label),
            str(score.images),
            _percent(score.first / score.images),
            _percent(score.among_five / score.images),
        )
    if len(evaluation.classes) > _CLASSES:
        classes.add_row(dimmed(f"{len(evaluation.classes) - _CLASSES} more"), "", "", "")
    return classes


def _confusions(evaluation: Evaluation) -> Table:
    confusions = table("true class", "predicted", "images", numbers=1)
    for confusion in evaluation.confusions:
        confusions.add_row(
            escape(confusion.truth), escape(confusion.taken_for), f"{confusion.images} of {confusion.of}"
        )
    return confusions


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
