"""The page of a run: machine and versions, bars, and tables and figures of every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import bars, machine, sections, tables
from benchmarks.measurement import Measurement
from benchmarks.servers import MODELS

MEASUREMENTS = "measurements.jsonl"
MACHINE = "machine.json"
PAGE = "README.md"

_CAPTIONS = {
    "throughput": "Throughput against connections, closed loop",
    "p99-closed": "p99 latency against connections, closed loop",
    "p99-open": "p99 latency against load, open loop, each server at shares of its own capacity",
    "p99-rate": "p99 latency against the offered rate, open loop",
    "cost-concurrency": "CPU time of the server for one image, by connections",
    "cost-size": "CPU time of the server for one image, by image size",
    "stages": "Stages of a request, from gradless's Server-Timing, open loop",
}


def models_of(measurements: Sequence[Measurement]) -> list[str]:
    """Return the networks that were measured."""
    there = {measurement.model for measurement in measurements if measurement.kind == "closed"}
    return [model for model in MODELS if model in there]


def write(folder: Path, measurements: Sequence[Measurement], figures: Mapping[str, Sequence[Path]]) -> Path:
    """Write the page from `measurements` and the machine's description in `folder`, and return its path.

    `figures` are by model, with the names of plots.draw_all.
    """
    described = machine.load(folder / MACHINE)
    lines = ["# Results", "", *_about(described, measurements), *bars.section(measurements)]
    for model in models_of(measurements):
        lines += ["", f"## {model}", *tables.of_model([m for m in measurements if m.model == model])]
        for path in figures.get(model, ()):
            caption = _CAPTIONS[path.stem.removeprefix(f"{model}-")]
            lines += ["", f"![{caption}]({path.name})"]
    lines += sections.server_alone(measurements)
    lines += sections.preprocessing(measurements)
    lines += sections.starts(measurements)
    lines += sections.agreement(measurements, described["settings"]["pictures"])
    page = folder / PAGE
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def _about(described: dict[str, Any], measurements: Sequence[Measurement]) -> list[str]:
    rounds = len({measurement.round for measurement in measurements})
    versions = ", ".join(f"{name} {number}" for name, number in described["versions"].items())
    return [
        f"- Date: {described['date']}; {rounds} round(s); figures are medians, with (least to largest)",
        f"- Machine: {described['processor']}, {described['cores']} cores, {described['memory_gib']} GiB",
        f"- System: {described['system']}; load average before: {described['load_average_before']:.2f}",
        f"- Versions: Python {described['python']}, {versions}; wrk {described['wrk']}",
        f"- Command: `{described['command']}`",
        f"- Pictures: {described['settings']['pictures']}",
        "",
        "The load runs on the same cores as the servers; its share of all cores is in the column *client CPU*.",
    ]
