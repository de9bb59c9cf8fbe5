"""The report of a comparison on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.api.schemas import Arm, GradModes
from app.reports.terminal import between, dimmed, table
from gradless.sentences import time_difference
from gradless.units import in_bytes, in_seconds

# Modules shown: a network has hundreds.
_MODULES = 5


def show(report: GradModes, console: Console) -> None:
    _seconds(report, console)
    console.print(_arms(report))
    for arm in report.arms:
        if arm.peak_note is not None:
            console.print(dimmed(f"No peak for {arm.arm}: {arm.peak_note}."))
        if arm.retained_note is not None:
            console.print(dimmed(f"What {arm.arm} keeps could not be observed: {arm.retained_note}."))
    if report.modules:
        console.print(_modules(report))
    if report.sweep:
        console.print(_sweep(report))
    console.print()
    sentences = Table.grid(padding=(0, 1))
    for sentence in report.sentences:
        sentences.add_row("•", escape(sentence))
    console.print(sentences)


def _seconds(report: GradModes, console: Console) -> None:
    """Show the two times that a hand-written experiment would print, then what was compared."""
    arms = {arm.arm: arm for arm in report.arms}
    if "grad" in arms and "no_grad" in arms:
        grad, without = arms["grad"].seconds.median, arms["no_grad"].seconds.median
        console.print(f"With gradient calculation: {grad:.3f} s")
        difference = time_difference(grad, without, arms["no_grad"].against_grad, report.iterations)
        console.print(f"Without: {without:.3f} s")
        console.print(f"Difference: {difference}")
    console.print(
        dimmed(
            f"{report.model} on {report.device}, batches of {report.batch_size} of {report.input}, "
            f"{report.iterations} round{'s' * (report.iterations != 1)}, PyTorch {report.torch}; "
            f"served by {report.backend} in {report.dtype}"
        )
    )


def _arms(report: GradModes) -> Table:
    arms = table("arm", "time", "quartiles", "peak", "kept", "backward", numbers=5)
    arms.columns[0].no_wrap = True
    for arm in report.arms:
        style = "bold" if arm.arm == "served" else None
        arms.add_row(
            arm.arm,
            in_seconds(arm.seconds.median),
            _quartiles(arm),
            _or_unknown(arm.peak_bytes),
            _kept(arm),
            "works" if arm.backward.works else "fails",
            style=style,
        )
    return arms


def _or_unknown(size: int | None) -> str:
    return "?" if size is None else in_bytes(size)


def _kept(arm: Arm) -> str:
    if arm.retained_bytes is None:
        return "?"
    return in_bytes(arm.retained_bytes) if arm.retained_bytes or arm.output.requires_grad else "nothing"


def _quartiles(arm: Arm) -> str:
    """Return the quartiles, without their unit if it is the median's."""
    lower, upper = in_seconds(arm.seconds.lower_quartile), in_seconds(arm.seconds.upper_quartile)
    if lower.split()[1] == upper.split()[1] == in_seconds(arm.seconds.median).split()[1]:
        lower, upper = lower.split()[0], upper.split()[0]
    return between(lower, upper)


def _modules(report: GradModes) -> Table:
    modules = table("kept for backward by module", "type", "bytes", numbers=1)
    for module in report.modules[:_MODULES]:
        modules.add_row(escape(module.module or "(itself)"), module.type, in_bytes(module.retained_bytes))
    rest = report.modules[_MODULES:]
    if rest:
        modules.add_row(dimmed(f"{len(rest)} more"), "", in_bytes(sum(module.retained_bytes for module in rest)))
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
