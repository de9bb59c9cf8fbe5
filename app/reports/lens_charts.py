"""Geometry of the charts in the lens report: bars, lines and ticks. The template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Small, so that the text stays legible when a phone scales the chart down.
_BAR_WIDTH = 290
_ROW_HEIGHT = 46

_PLOT_WIDTH, _PLOT_HEIGHT = 290, 210
_TICKS = 4


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark at `at` pixels from the origin of the axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a bar chart, `y` pixels from the top. `width` is None if the figure is unknown. `low` and `high` are the
    ends of its whisker."""

    name: str
    label: str
    y: int
    width: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Bars:
    bars: list[Bar]
    ticks: list[Tick]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Value:
    """The figure of a bar, with quartiles if they are known."""

    name: str
    figure: float | None
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """`points` in SVG syntax; `marks` are the same points with their tooltips."""

    name: str
    points: str
    marks: list[tuple[float, float, str]]


@dataclass(frozen=True, slots=True)
class Lines:
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    width: int
    height: int


def bars(values: Sequence[Value], label: Callable[[float], str]) -> Bars:
    """Return horizontal bars from zero, in the order of `values`. `label` formats a figure."""
    scale = _scale(max((value.upper or value.figure or 0 for value in values), default=0), _BAR_WIDTH)
    rows = [
        Bar(
            value.name,
            "not known" if value.figure is None else label(value.figure),
            number * _ROW_HEIGHT,
            None if value.figure is None else scale.of(value.figure),
            None if value.lower is None else scale.of(value.lower),
            None if value.upper is None else scale.of(value.upper),
        )
        for number, value in enumerate(values)
    ]
    return Bars(rows, scale.ticks(label), _BAR_WIDTH, len(rows) * _ROW_HEIGHT)


def lines(series: dict[str, list[tuple[int, float]]], label: Callable[[float], str]) -> Lines:
    """Return lines over batch sizes at equal distances: sizes usually double from one to the next."""
    points = [point for each in series.values() for point in each]
    sizes = sorted({size for size, _ in points})
    step = _PLOT_WIDTH / max(1, len(sizes) - 1)
    across = {size: number * step for number, size in enumerate(sizes)}
    scale = _scale(max((figure for _, figure in points), default=0), _PLOT_HEIGHT)
    drawn = []
    for name, figures in series.items():
        marks = [
            (across[size], _PLOT_HEIGHT - scale.of(figure), f"{name}, batch of {size}: {label(figure)}")
            for size, figure in figures
        ]
        drawn.append(Line(name, " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in marks), marks))
    return Lines(
        drawn,
        [Tick(at, str(size)) for size, at in across.items()],
        [Tick(_PLOT_HEIGHT - tick.at, tick.label) for tick in scale.ticks(label)],
        _PLOT_WIDTH,
        _PLOT_HEIGHT,
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """From 0 to `top`, a round number, over `length` pixels, in steps of `step`."""

    top: float
    step: float
    length: int

    def of(self, figure: float) -> float:
        return round(figure / self.top * self.length, 1)

    def ticks(self, label: Callable[[float], str]) -> list[Tick]:
        count = round(self.top / self.step)
        steps = [number * self.step for number in range(1, count + 1)]
        return [Tick(0.0, "0"), *(Tick(self.of(figure), label(figure)) for figure in steps)]


def _scale(highest: float, length: int) -> _Scale:
    """Return a scale of three to six steps of 1, 2 or 5 times a power of ten that includes `highest`."""
    if highest <= 0:
        return _Scale(1.0, 1.0, length)
    rough = highest / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return _Scale(step * math.ceil(highest / step), step, length)
