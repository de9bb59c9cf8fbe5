"""Measurements without HTTP, by processes of the project's environment that print lines of JSON."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.bench import ROOT, Bench
from benchmarks.measurement import Measurement
from benchmarks.plan import Plan
from benchmarks.servers import MODELS, SERVERS

_log = logging.getLogger(__name__)

# Includes minutes of compiling or calibrating.
_TIMEOUT_S = 1800.0

# More add little, and cost a minute for each thousand and engine.
_MOST_COMPARED = 500


def preprocessing(plan: Plan, number: int, bench: Bench) -> Iterator[Measurement]:
    """Measure the CPU time of gradless's and Pillow's decode, resize and crop, by size."""
    arguments = ["--seconds", str(plan.seconds / 2)]
    for size, files in bench.pictures.items():
        arguments += ["--size", size, *map(str, files)]
    for report in _run(bench, "preprocessing", arguments):
        for way in ("gradless", "Pillow"):
            yield Measurement(
                kind="preprocessing",
                server=way,
                model=MODELS[0],
                round=number,
                size=report["size"],
                figures={"cpu_ms": report[way], "images": report["images"]},
            )


def agreement(plan: Plan, bench: Bench) -> Iterator[Measurement]:
    """Measure the agreement of engines with the reference on the sent pictures; log engines that do not run here."""
    engines = {spec.engine: f"{spec.backend} {spec.precision}" for spec in plan.gradless_engines}
    if plan.all_engines:
        named = [spec for spec in SERVERS.values() if spec.backend and MODELS[0] in spec.models]
        engines |= {spec.engine: f"{spec.backend} {spec.precision}" for spec in named}
    arguments = ["--calibration-folder", str(bench.usual_folder), "--engines", *engines.values(), "--pictures"]
    for report in _run(bench, "agreement", [*arguments, *map(str, bench.usual[:_MOST_COMPARED])]):
        if "refused" in report:
            _log.info("no agreement of %s: %s", report["engine"], report["refused"])
            continue
        figures = {name: report[name] for name in ("images", "agreeing", "largest_difference")}
        yield Measurement(kind="agreement", server=report["engine"], model=MODELS[0], round=1, figures=figures)


def _run(bench: Bench, module: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Return the output lines of benchmarks.`module`; if it fails, those so far, and log the end of its stderr."""
    command = [str(bench.project_python), "-W", "ignore", "-m", f"benchmarks.{module}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(  # noqa: S603 - ours
        command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    if done.returncode:
        _log.error("%s %s: %s", module, " ".join(arguments[:6]), done.stderr[-1500:])
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
