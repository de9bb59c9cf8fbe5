"""Reports on a terminal: a comparison of autograd modes, an evaluation, an optimization; and the console they use."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gradless.sentences import in_bytes, in_seconds, time_difference

if TYPE_CHECKING:
    from app.api.schemas import Arm, GradModes
    from models.offline.evaluation import Evaluation
    from models.optimizing.comparison import Accuracy, Rate, Report, Side

# Rows shown: a network has hundreds of modules, a model may have thousands of classes.
_MODULES = 5
_CLASSES = 10


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


def show_comparison(report: GradModes, console: Console) -> None:
    _show_seconds(report, console)
    console.print(_arms(report))
    for arm in report.arms:
        if arm.peak_note is not None:
            console.print(_dimmed(f"No peak for {arm.arm}: {arm.peak_note}."))
        if arm.retained_note is not None:
            console.print(_dimmed(f"What {arm.arm} keeps could not be observed: {arm.retained_note}."))
    if report.modules:
        console.print(_modules(report))
    if report.sweep:
        console.print(_sweep(report))
    console.print()
    sentences = Table.grid(padding=(0, 1))
    for sentence in report.sentences:
        sentences.add_row("•", escape(sentence))
    console.print(sentences)


def _show_seconds(report: GradModes, console: Console) -> None:
    """Show the two times that a hand-written experiment would print, then what was compared."""
    arms = {arm.arm: arm for arm in report.arms}
    if "grad" in arms and "no_grad" in arms:
        grad, without = arms["grad"].seconds.median, arms["no_grad"].seconds.median
        console.print(f"With gradient calculation: {grad:.3f} s")
        difference = time_difference(grad, without, arms["no_grad"].against_grad, report.iterations)
        console.print(f"Without: {without:.3f} s")
        console.print(f"Difference: {difference}")
    console.print(
        _dimmed(
            f"{report.model} on {report.device}, batches of {report.batch_size} of {report.input}, "
            f"{report.iterations} round{'s' * (report.iterations != 1)}, PyTorch {report.torch}; "
            f"served by {report.backend} in {report.dtype}"
        )
    )


def _arms(report: GradModes) -> Table:
    arms = table("arm", "time", "quartiles", "peak", "kept", "backward", numbers=5)
    arms.columns[0].no_wrap = True
    for arm in report.arms:
        arms.add_row(
            arm.arm,
            in_seconds(arm.seconds.median),
            _quartile_seconds(arm),
            _or_unknown(arm.peak_bytes),
            _kept(arm),
            "works" if arm.backward.works else "fails",
            style="bold" if arm.arm == "served" else None,
        )
    return arms


def _or_unknown(size: int | None) -> str:
    return "?" if size is None else in_bytes(size)


def _kept(arm: Arm) -> str:
    if arm.retained_bytes is None:
        return "?"
    return in_bytes(arm.retained_bytes) if arm.retained_bytes or arm.output.requires_grad else "nothing"


def _quartile_seconds(arm: Arm) -> str:
    """Return the quartiles, without their unit if it is the median's."""
    lower, upper = in_seconds(arm.seconds.lower_quartile), in_seconds(arm.seconds.upper_quartile)
    if lower.split()[1] == upper.split()[1] == in_seconds(arm.seconds.median).split()[1]:
        lower, upper = lower.split()[0], upper.split()[0]
    return _between(lower, upper)


def _modules(report: GradModes) -> Table:
    modules = table("kept for backward by module", "type", "bytes", numbers=1)
    for module in report.modules[:_MODULES]:
        modules.add_row(escape(module.module or "(itself)"), module.type, in_bytes(module.retained_bytes))
    rest = report.modules[_MODULES:]
    if rest:
        modules.add_row(_dimmed(f"{len(rest)} more"), "", in_bytes(sum(module.retained_bytes for module in rest)))
    return modules


def _sweep(report: GradModes) -> Table:
    sizes = [str(point.batch_size) for point in report.sweep]
    sweep = table("time, batch of", *sizes, numbers=len(sizes))
    sweep.columns[0].no_wrap = True
    for number, arm in enumerate(report.arms):
        sweep.add_row(arm.arm, *(in_seconds(point.arms[number].median_seconds) for point in report.sweep))
    grad = next((number for number, arm in enumerate(report.arms) if arm.arm == "grad"), None)
    if grad is not None:
        sweep.add_section()
        sweep.add_row("kept by grad", *(_or_unknown(point.arms[grad].retained_bytes) for point in report.sweep))
    return sweep


def show_evaluation(evaluation: Evaluation, console: Console) -> None:
    left_out = f", {evaluation.without_answer} could not be classified" if evaluation.without_answer else ""
    console.print(f"Top-1: {_percent(evaluation.top1)}")
    console.print(f"Top-5: {_percent(evaluation.top5)}")
    console.print(f"Calibration error: {_percent(evaluation.calibration_error)}")
    console.print(_dimmed(f"{evaluation.model}, {evaluation.images} images{left_out}"))
    if evaluation.classes:
        console.print(_classes(evaluation))
    if evaluation.confusions:
        confusions = table("true class", "predicted", "images", numbers=1)
        for found in evaluation.confusions:
            confusions.add_row(escape(found.truth), escape(found.taken_for), f"{found.images} of {found.of}")
        console.print(confusions)


def _classes(evaluation: Evaluation) -> Table:
    classes = table("worst classes", "images", "top-1", "top-5", numbers=3)
    for score in evaluation.classes[:_CLASSES]:
        first, among_five = score.first / score.images, score.among_five / score.images
        classes.add_row(escape(score.label), str(score.images), _percent(first), _percent(among_five))
    if len(evaluation.classes) > _CLASSES:
        classes.add_row(_dimmed(f"{len(evaluation.classes) - _CLASSES} more"), "", "", "")
    return classes


def show_optimization(report: Report, console: Console) -> None:
    """Show both models side by side, then how far their answers agree."""
    sides = table("", escape(report.source), escape(report.name), "", numbers=3)
    for row in _sides(report, report.before, report.after):
        sides.add_row(*row)
    console.print(sides)
    agreement = report.agreement
    cosine = agreement.feature_cosine
    grid = Table.grid(padding=(0, 2))
    grid.add_row("same top class", f"{agreement.top1:.2%} of {agreement.images} images")
    grid.add_row("change of probability", f"{agreement.mean_probability_change:.4f} on average")
    grid.add_row("", f"{agreement.largest_probability_change:.4f} at most")
    grid.add_row("cosine of features", "of different lengths" if cosine is None else f"{cosine:.5f} on average")
    console.print(grid)
    left_out = (f"{report.left_out} files could not be read.",) if report.left_out else ()
    for remark in (*report.remarks, *left_out):
        console.print(_dimmed(remark))


def _sides(report: Report, before: Side, after: Side) -> Sequence[tuple[str, str, str, str]]:
    def both(what: str, figure: str, old: float, new: float) -> tuple[str, str, str, str]:
        return what, format(old, figure), format(new, figure), _times(new, old)

    return [
        ("served in", _served_in(before), _served_in(after), ""),
        ("fingerprint", before.fingerprint, after.fingerprint, ""),
        both("parameters", ",", before.parameters, after.parameters),
        (
            "weights",
            in_bytes(before.weight_bytes),
            in_bytes(after.weight_bytes),
            _times(after.weight_bytes, before.weight_bytes),
        ),
        both(f"images/s, batches of {report.batch_size}", ".1f", before.rate.median, after.rate.median),
        (f"quartiles of {report.rounds} rounds", _quartile_rates(before.rate), _quartile_rates(after.rate), ""),
        *_accuracies(before.accuracy, after.accuracy),
    ]


def _accuracies(before: Accuracy | None, after: Accuracy | None) -> list[tuple[str, str, str, str]]:
    if before is None or after is None:
        return []
    return [
        ("top-1 accuracy", f"{before.top1:.2%}", f"{after.top1:.2%}", f"{after.top1 - before.top1:+.2%}"),
        ("top-5 accuracy", f"{before.top5:.2%}", f"{after.top5:.2%}", f"{after.top5 - before.top5:+.2%}"),
    ]


def _served_in(side: Side) -> str:
    return f"{side.dtype}, {side.backend}, {side.device}"


def _quartile_rates(rate: Rate) -> str:
    return _between(f"{rate.lower_quartile:.1f}", f"{rate.upper_quartile:.1f}")


def _times(new: float, old: float) -> str:
    return f"x {new / old:.2f}"


def _dimmed(text: str) -> str:
    return f"[dim]{escape(text)}[/dim]"


def _between(lower: str, upper: str) -> str:
    return f"{lower}–{upper}"  # noqa: RUF001 - the sign for ranges


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
