"""SVG figures: throughput and p99 against load, stages of a request, cost by size and by concurrency."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
# Reproducible files.
mpl.rcParams["svg.hashsalt"] = "gradless"

from matplotlib import pyplot as plt  # noqa: E402 - after the choice of how to draw
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from benchmarks.comparisons import Value, rate, servers_of  # noqa: E402
from benchmarks.measurement import Kind, Measurement  # noqa: E402
from benchmarks.pictures import SIZES, megapixels  # noqa: E402
from benchmarks.servers import SERVERS  # noqa: E402
from benchmarks.statistic import Spread, spread  # noqa: E402

# Each server has the same colour in every figure, from twenty distinct ones.
_COLOURS = dict(zip(SERVERS, mpl.colormaps["tab20"].colors, strict=False))
_STAGES = ("read", "decode", "queue", "forward")


def draw_all(measurements: Sequence[Measurement], model: str, folder: Path) -> list[Path]:
    """Draw every figure for which `model` has measurements."""
    of_model = [measurement for measurement in measurements if measurement.model == model]
    drawn = {
        "throughput": _lines(of_model, "closed", rate, "images/s", "connections", log_x=True),
        "p99-closed": _lines(of_model, "closed", _p99, "p99 latency, ms", "connections", log_x=True, log_y=True),
        "p99-open": _lines(of_model, "open", _p99, "p99 latency, ms", "offered load, % of own capacity", log_y=True),
        "p99-rate": _p99_against_rate(of_model),
        "cost-concurrency": _lines(of_model, "closed", _cost, "CPU ms per image", "connections", log_x=True),
        "cost-size": _by_size(of_model),
        "stages": _stages(of_model),
    }
    paths = []
    for name, figure in drawn.items():
        if figure is not None:
            paths.append(folder / f"{model}-{name}.svg")
            figure.savefig(paths[-1], metadata={"Date": None})
            plt.close(figure)
    return paths


def _p99(measurement: Measurement) -> float:
    return measurement.latency_ms["p99"]


def _cost(measurement: Measurement) -> float:
    return measurement.server_cpu_ms_per_image


def _lines(
    measurements: Sequence[Measurement],
    kind: Kind,
    value: Value,
    y_label: str,
    x_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
) -> Figure | None:
    chosen = [measurement for measurement in measurements if measurement.kind == kind and measurement.latency_ms]
    if not chosen:
        return None
    figure, axes = _empty(x_label, y_label)
    for server in servers_of(chosen):
        points = _points([m for m in chosen if m.server == server], value)
        _line(axes, server, points)
    loads = sorted({measurement.load for measurement in chosen})
    if log_x:
        axes.set_xscale("log", base=2)
    if log_y:
        axes.set_yscale("log")
    axes.set_xticks(loads, [f"{load:g}" for load in loads])
    return _finished(figure, axes, from_zero=not log_y)


def _p99_against_rate(measurements: Sequence[Measurement]) -> Figure | None:
    chosen = [m for m in measurements if m.kind == "open" and m.offered_per_second]
    if not chosen:
        return None
    figure, axes = _empty("offered, images/s", "p99 latency, ms")
    for server in servers_of(chosen):
        own = [measurement for measurement in chosen if measurement.server == server]
        offered = [x.median for _, x in _medians(own, lambda m: m.offered_per_second or 0.0)]
        latency = [y.median for _, y in _medians(own, _p99)]
        axes.plot(offered, latency, marker="o", label=server, color=_COLOURS.get(server))
    axes.set_yscale("log")
    return _finished(figure, axes, from_zero=False)


def _by_size(measurements: Sequence[Measurement]) -> Figure | None:
    chosen = [m for m in measurements if m.kind == "size"]
    if not chosen:
        return None
    figure, axes = _empty("image size, megapixels", "CPU ms per image")
    for server in servers_of(chosen):
        points = []
        for size in SIZES:
            costs = [_cost(m) for m in chosen if m.server == server and m.size == size]
            if costs:
                points.append((megapixels(size), spread(costs)))
        _line(axes, server, [(x, y.median, y.least, y.largest) for x, y in points])
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [megapixels(size) for size in SIZES]
    axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
    axes.minorticks_off()
    return _finished(figure, axes, from_zero=False)


def _stages(measurements: Sequence[Measurement]) -> Figure | None:
    chosen = [m for m in measurements if m.kind == "open" and m.stages_ms]
    if not chosen:
        return None
    groups = defaultdict(list)
    for measurement in chosen:
        groups[measurement.server, measurement.load].append(measurement)
    labels = [f"{server.removeprefix('gradless ')}, {load:g} %" for server, load in groups]
    figure, axes = _empty("mean ms of a request", "")
    left = [0.0] * len(groups)
    for stage in _STAGES:
        widths = [spread([m.stages_ms.get(stage, 0.0) for m in group]).median for group in groups.values()]
        axes.barh(labels, widths, left=left, label=stage)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    return _finished(figure, axes, from_zero=True)


def _medians(measurements: Sequence[Measurement], value: Value) -> list[tuple[float, Spread]]:
    """Return measurements by load, in order of load."""
    by_load = defaultdict(list)
    for measurement in measurements:
        by_load[measurement.load].append(value(measurement))
    return [(load, spread(by_load[load])) for load in sorted(by_load)]


def _points(measurements: Sequence[Measurement], value: Value) -> list[tuple[float, float, float, float]]:
    return [(load, y.median, y.least, y.largest) for load, y in _medians(measurements, value)]


def _line(axes: Axes, server: str, points: Sequence[tuple[float, float, float, float]]) -> None:
    loads, medians, least, largest = ([point[column] for point in points] for column in range(4))
    axes.plot(loads, medians, marker="o", label=server, color=_COLOURS.get(server))
    axes.fill_between(loads, least, largest, alpha=0.15, color=_COLOURS.get(server), linewidth=0)


def _empty(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(visible=True, alpha=0.3)
    return figure, axes


def _finished(figure: Figure, axes: Axes, *, from_zero: bool) -> Figure:
    if from_zero:
        axes.set_ylim(bottom=0) if axes.get_ylabel() else axes.set_xlim(left=0)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
