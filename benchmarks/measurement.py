"""Measurements and their file, with one line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["closed", "open", "size", "overload", "ceiling", "preprocessing", "start", "agreement"]

# All cores decode; all cores decode and run forwards; one image after another on an idle machine.
Ceiling = Literal["decoding", "together", "alone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A measurement. `turn` numbers repetitions in a round. `load`: connections (closed, size), percent of the capacity
    (open, overload), or 0. `offered_per_second` is for open loops. Latencies are of answers with status 200, in ms by
    name: p50, p90, p99, mean, max; in open loops from the scheduled moment. `refusal_latency_ms`: the same of answers
    with status 429, from the moment of sending. CPU shares: 1 is every core busy. `stages_ms` are means of the
    Server-Timing header. `figures` has other values, each with its unit in its name."""

    kind: Kind
    server: str
    model: str
    round: int
    turn: int = 1
    load: float = 0.0
    size: str = "0.2 MP"
    seconds: float = 0.0
    images_per_second: float = 0.0
    offered_per_second: float | None = None
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    refusal_latency_ms: Mapping[str, float] = field(default_factory=dict)
    statuses: Mapping[str, int] = field(default_factory=dict)
    failed: int = 0
    client_cpu_share: float = 0.0
    server_cpu_share: float = 0.0
    server_cpu_ms_per_image: float = 0.0
    server_bytes: int = 0
    start_seconds: float = 0.0
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def refused(self) -> int:
        """Return the number of requests without 200: other statuses, broken connections, timeouts."""
        return self.failed + sum(count for status, count in self.statuses.items() if status != "200")


def ceiling_name(ceiling: Ceiling, engine: str) -> str:
    """Return the `server` of a ceiling; decoding is the same for all engines."""
    names: dict[Ceiling, str] = {
        "decoding": "decode",
        "together": f"decode + forward, {engine}",
        "alone": f"one image at a time, {engine}",
    }
    return names[ceiling]


def latency(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the latencies of a load's report by percentile."""
    return {name: report[f"{name}_ms"] for name in ("p50", "p90", "p99", "mean", "max")}


class Store:
    """The file of measurements, appended to during a run and read for the report."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, measurement: Measurement) -> None:
        """Write a measurement at once, so that an interrupted run keeps it."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(measurement)) + "\n")

    def read(self) -> list[Measurement]:
        """Return all measurements in order."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines()
        return [Measurement(**json.loads(line)) for line in lines if line.strip()]
