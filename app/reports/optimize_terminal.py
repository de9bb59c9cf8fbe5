"""The report of an optimization on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.reports.terminal import between, dimmed, table
from gradless.units import in_bytes
from models.optimizing.report import Accuracy, Rate, Report, Side


def show(report: Report, console: Console) -> None:
    """Show both models side by side, then how far their answers agree."""
    console.print(_sides(report))
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
        console.print(dimmed(remark))


def _sides(report: Report) -> Table:
    before, after = report.before, report.after
    sides = table("", escape(report.source), escape(report.name), "", numbers=3)
    rows: list[tuple[str, str, str, str]] = [
        ("served in", _served_in(before), _served_in(after), ""),
        ("fingerprint", before.fingerprint, after.fingerprint, ""),
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}", _times(after.parameters, before.parameters)),
        (
            "weights",
            in_bytes(before.weight_bytes),
            in_bytes(after.weight_bytes),
            _times(after.weight_bytes, before.weight_bytes),
        ),
        (
            f"images/s, batches of {report.batch_size}",
            f"{before.rate.median:.1f}",
            f"{after.rate.median:.1f}",
            _times(after.rate.median, before.rate.median),
        ),
        (f"quartiles of {report.rounds} rounds", _quartiles(before.rate), _quartiles(after.rate), ""),
        *_accuracies(before.accuracy, after.accuracy),
    ]
    for row in rows:
        sides.add_row(*row)
    return sides


def _accuracies(before: Accuracy | None, after: Accuracy | None) -> list[tuple[str, str, str, str]]:
    if before is None or after is None:
        return []
    return [
        ("top-1 accuracy", f"{before.top1:.2%}", f"{after.top1:.2%}", f"{after.top1 - before.top1:+.2%}"),
        ("top-5 accuracy", f"{before.top5:.2%}", f"{after.top5:.2%}", f"{after.top5 - before.top5:+.2%}"),
    ]


def _served_in(side: Side) -> str:
    return f"{side.dtype}, {side.backend}, {side.device}"


def _quartiles(rate: Rate) -> str:
    return between(f"{rate.lower_quartile:.1f}", f"{rate.upper_quartile:.1f}")


def _times(new: float, old: float) -> str:
    return f"x {new / old:.2f}"
