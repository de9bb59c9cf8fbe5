"""Reports as one HTML file that loads nothing: a comparison of autograd modes, and an evaluation."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.reports import lens_charts
from app.reports.lens_charts import Value
from gradless.sentences import in_bytes, in_seconds
from models.interface.request import ImageLimits
from models.offline import files

if TYPE_CHECKING:
    from app.api.schemas import GradModes, SweptArm
    from models.offline.evaluation import Evaluation

# Rows shown at once; the others are in a collapsed part.
_MODULES = 12
_CLASSES = 15

# Longer side in pixels: twice the displayed size, for high-resolution screens.
_PICTURE_SIDE = 360


def _percent(share: float) -> str:
    # A no-break space before the sign.
    return f"{100 * share:.1f}\u00a0%"


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {"in_bytes": in_bytes, "in_seconds": in_seconds, "percent": _percent}


def _render(template: str, **values: Any) -> str:
    """Render the template of that file name, which extends page.html.jinja."""
    return _ENVIRONMENT.get_template(template).render(values)


def comparison_page(report: GradModes) -> str:
    return _render(
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
    series = partial(_series, report)
    return [
        ("Time by batch size", lens_charts.lines(series(lambda arm: arm.median_seconds), in_seconds)),
        ("Kept for a backward pass by batch size", lens_charts.lines(series(lambda arm: arm.retained_bytes), in_bytes)),
        ("Peak memory by batch size", lens_charts.lines(series(lambda arm: arm.peak_bytes), in_bytes)),
    ]


def _series(report: GradModes, figure: Callable[[SweptArm], float | None]) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = {arm.arm: [] for arm in report.arms}
    for point in report.sweep:
        for arm in point.arms:
            found = figure(arm)
            if found is not None:
                series[arm.arm].append((point.batch_size, found))
    return {name: points for name, points in series.items() if points}


def evaluation_page(evaluation: Evaluation, limits: ImageLimits, max_bytes: int) -> str:
    """`limits` and `max_bytes` apply to the images whose thumbnails the page shows."""
    return _render(
        "evaluation_page.html.jinja",
        evaluation=evaluation,
        first_classes=evaluation.classes[:_CLASSES],
        other_classes=evaluation.classes[_CLASSES:],
        mistakes=[
            (mistake, files.name(Path(mistake.path).name), _picture(mistake.path, limits, max_bytes))
            for mistake in evaluation.mistakes
        ],
        most_in_a_bin=max((found.images for found in evaluation.bins), default=0),
    )


def _picture(path: str, limits: ImageLimits, max_bytes: int) -> str | None:
    """Return a thumbnail of the file as a data: URI, or None if the file can no longer be read."""
    # Not above: importing torch takes seconds.
    from models.offline.reading import thumbnail  # noqa: PLC0415

    made = thumbnail(path, limits, max_bytes=max_bytes, side=_PICTURE_SIDE)
    return None if made is None else "data:image/jpeg;base64," + b64encode(made).decode()
