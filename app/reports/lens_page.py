"""The report of a comparison as an HTML page."""

from __future__ import annotations

from collections.abc import Callable

from app.api.schemas import GradModes, SweptArm
from app.reports import lens_charts
from app.reports.html import render
from app.reports.lens_charts import Value
from gradless.units import in_bytes, in_seconds

# Modules shown at once; the others are in a collapsed part.
_MODULES = 12


def page(report: GradModes) -> str:
    return render(
        "lens_page.html.jinja",
        report=report,
        bars=_bars(report),
        lines=_lines(report),
        first_modules=report.modules[:_MODULES],
        other_modules=report.modules[_MODULES:],
        most_retained=report.modules[0].retained_bytes if report.modules else 0,
    )


def _bars(report: GradModes) -> list[tuple[str, lens_charts.Bars]]:
    seconds = [
        Value(arm.arm, arm.seconds.median, arm.seconds.lower_quartile, arm.seconds.upper_quartile)
        for arm in report.arms
    ]
    peaks = [Value(arm.arm, arm.peak_bytes) for arm in report.arms]
    retained = [Value(arm.arm, arm.retained_bytes) for arm in report.arms]
    return [
        ("Kept for a backward pass", lens_charts.bars(retained, in_bytes)),
        ("Peak memory of the forward", lens_charts.bars(peaks, in_bytes)),
        ("Time of the forward, with quartiles", lens_charts.bars(seconds, in_seconds)),
    ]


def _lines(report: GradModes) -> list[tuple[str, lens_charts.Lines]]:
    if not report.sweep:
        return []
    return [
        ("Time by batch size", lens_charts.lines(_series(report, lambda arm: arm.median_seconds), in_seconds)),
        ("Kept for a backward pass by batch size", lens_charts.lines(_series(report, _retained), in_bytes)),
        ("Peak memory by batch size", lens_charts.lines(_series(report, lambda arm: arm.peak_bytes), in_bytes)),
    ]


def _retained(arm: SweptArm) -> float | None:
    return arm.retained_bytes


def _series(report: GradModes, figure: Callable[[SweptArm], float | None]) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = {arm.arm: [] for arm in report.arms}
    for point in report.sweep:
        for arm in point.arms:
            found = figure(arm)
            if found is not None:
                series[arm.arm].append((point.batch_size, found))
    return {name: points for name, points in series.items() if points}
