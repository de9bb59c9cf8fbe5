"""The measurements in their order: every server once, then again. Whatever else the machine does over time then
falls on all of them alike."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks import plan as plans
from benchmarks.load import Loaded, closed_loop, open_loop
from benchmarks.measurement import Kind, Measurement
from benchmarks.pictures import megapixels
from benchmarks.plan import Plan
from benchmarks.processes import ROOT, RunningServer, ServerFailedError, running
from benchmarks.servers import ServerSpec

_log = logging.getLogger(__name__)

Pictures = Mapping[str, list[Path]]
Keep = Callable[[Measurement], None]

_CATALOG = {"efficientnet_lite0": "efficientnet_lite0", "resnet50": "resnet50:random"}

# The part of a closed loop before its rate counts.
_WARM_PART = 0.25


def measure(plan: Plan, pictures: Pictures, project_python: Path, log_folder: Path, keep: Keep) -> None:
    """Everything of `plan`; each measurement goes to `keep` at once. `pictures` are by size, the first the usual."""
    for number in range(1, plan.rounds + 1):
        for model in plan.models:
            for spec in plan.servers:
                try:
                    _visit(plan, spec, model, number, pictures, project_python, log_folder, keep)
                except (ServerFailedError, subprocess.CalledProcessError) as error:
                    # The others are worth having; the report shows the gap.
                    _log.error("%s, %s: %s", spec.name, model, error)
            for measurement in _ceilings(plan, model, number, pictures):
                keep(measurement)


def _visit(
    plan: Plan,
    spec: ServerSpec,
    model: str,
    number: int,
    pictures: Pictures,
    project_python: Path,
    log_folder: Path,
    keep: Keep,
) -> None:
    usual = next(iter(pictures.values()))
    body = usual[0].read_bytes()
    with running(spec, model, body=body, project_python=project_python, log_folder=log_folder) as server:
        visit = Visit(server, spec.name, model, number, plan.seconds)
        for measurement in visit.measurements(plan, pictures):
            keep(measurement)


class Visit:
    """One running server, measured in one round."""

    def __init__(self, server: RunningServer, name: str, model: str, number: int, seconds: float) -> None:
        self._server = server
        self._name = name
        self._model = model
        self._round = number
        self._seconds = seconds

    def measurements(self, plan: Plan, pictures: Pictures) -> Iterator[Measurement]:
        """Closed loops, from which the capacity is known, then open loops at shares of it, then sizes."""
        usual, files = next(iter(pictures.items()))
        warm = closed_loop(self._server, files, connections=16, seconds=plans.WARM_UP_S, warm_s=plans.WARM_UP_S / 2)
        capacity = pace = _rate(warm.report, plans.WARM_UP_S / 2)
        for connections in plan.connections:
            measured = self._closed("closed", usual, files, connections, pace)
            # One connection alone says little of what the server can do.
            pace = max(pace, measured.images_per_second)
            capacity = pace
            yield measured
        for percent in plan.open_loads(self._model):
            yield self._open(files, percent, capacity)
        if plan.with_sizes(self._model):
            for size, paths in pictures.items():
                expected = plans.expected_pace(pace, megapixels(size))
                yield self._closed("size", size, paths, plans.SIZE_CONNECTIONS, expected)

    def _closed(self, kind: Kind, size: str, files: list[Path], connections: int, pace: float) -> Measurement:
        seconds = round(plans.closed_loop_seconds(connections, pace, self._seconds))
        warm_s = seconds * _WARM_PART
        loaded = closed_loop(self._server, files, connections=connections, seconds=seconds, warm_s=warm_s)
        return self._measurement(kind, float(connections), size, loaded, _rate(loaded.report, warm_s))

    def _open(self, files: list[Path], percent: int, capacity: float) -> Measurement:
        rate = capacity * percent / 100
        # Another schedule each round, the same for all servers.
        loaded = open_loop(self._server, files, rate=rate, seconds=self._seconds, seed=self._round)
        return self._measurement("open", float(percent), "0.2 MP", loaded, _rate(loaded.report, 0.0), offered=rate)

    def _measurement(
        self, kind: Kind, load: float, size: str, loaded: Loaded, rate: float, *, offered: float | None = None
    ) -> Measurement:
        report = loaded.report
        return Measurement(
            kind=kind,
            server=self._name,
            model=self._model,
            round=self._round,
            load=load,
            size=size,
            seconds=report["seconds"],
            images_per_second=rate,
            offered_per_second=offered,
            latency_ms=_latency(report),
            statuses=report["statuses"],
            failed=report["failed"],
            client_cpu_share=loaded.client_cpu_share,
            server_cpu_share=loaded.server_cpu_share,
            server_cpu_ms_per_image=loaded.server_cpu_seconds / max(1, report["succeeded"]) * 1e3,
            server_bytes=self._server.resident_bytes(),
            start_seconds=self._server.start_seconds,
            stages_ms=report.get("stages_ms", {}),
        )


def _rate(report: Mapping[str, object], warm_s: float) -> float:
    statuses, seconds = report["statuses"], report["seconds"]
    assert isinstance(statuses, dict)  # noqa: S101 - rotate.lua and open_loop write it so
    assert isinstance(seconds, float)  # noqa: S101
    return float(statuses.get("200", 0)) / max(seconds - warm_s, 1e-3)


def _latency(report: Mapping[str, float]) -> dict[str, float]:
    return {name: report[f"{name}_ms"] for name in ("p50", "p90", "p99", "mean", "max")}


def _ceilings(plan: Plan, model: str, number: int, pictures: Pictures) -> Iterator[Measurement]:
    """For each way that gradless is measured with: decode alone, decode and forward together, one image alone."""
    files = next(iter(pictures.values()))
    for spec in plan.servers:
        if not spec.name.startswith("gradless "):
            continue
        backend, precision = spec.engine.split()
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ceilings", "--model", _CATALOG[model]]
        command += ["--backend", backend, "--precision", precision, "--seconds", str(plan.seconds), *map(str, files)]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)  # noqa: S603 - ours
        if done.returncode:
            _log.error("ceilings of %s, %s: %s", spec.engine, model, done.stderr[-1500:])
            continue
        yield from _ceiling_rows(json.loads(done.stdout.splitlines()[-1]), spec.engine, model, number)


def _ceiling_rows(report: dict[str, object], engine: str, model: str, number: int) -> Iterator[Measurement]:
    alone = report["alone"]
    assert isinstance(alone, dict)  # noqa: S101 - benchmarks.ceilings writes it so
    rates = {
        "decode": float(str(report["decoding_per_second"])),
        f"decode + forward, {engine}": float(str(report["together_per_second"])),
        f"one image at a time, {engine}": 1e3 / alone["mean_ms"],
    }
    for name, rate in rates.items():
        latency = _latency(alone) if name.startswith("one") else {}
        yield Measurement(
            kind="ceiling", server=name, model=model, round=number, load=0.0, images_per_second=rate, latency_ms=latency
        )
