"""Measure Ray's overhead for an image on one machine: `python -m benchmarks.ray_job`."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from benchmarks import machine
from benchmarks.bench import ROOT
from benchmarks.markdown import over_rounds, table
from benchmarks.pictures import DRAWN, draw_linked
from benchmarks.processes import tree

_log = logging.getLogger("benchmarks.ray_job")

_PAGE = ROOT / "benchmarks/results/ray_job.md"

# Files of the short run: a task's files for each core, so that every reading process starts in the short run too.
_FEW = 512 * (os.cpu_count() or 1)

_MOST_DEARER = 0.15

_SAMPLE_S = 0.5

_PACKAGES = ("torch", "openvino", "ray")

_WAYS: dict[str, list[str]] = {"gradless features": [], "gradless features --ray local": ["--ray", "local"]}
_LOCAL, _RAY = _WAYS


@dataclass(frozen=True, slots=True)
class Cost:
    """Time of an image, and of start and end. CPU time is of all processes, including Ray's."""

    image_ms: float
    image_cpu_ms: float
    start_s: float


def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_job", description="a job on Ray and without it")
    parser.add_argument("--images", type=int, default=5 * _FEW, help=f"files, more than {_FEW}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--python", type=Path, default=ROOT / ".venv/bin/python", help="interpreter of gradless's environment"
    )
    parser.add_argument("--out", type=Path, default=_PAGE, help="page to write")
    parsed = parser.parse_args()
    if parsed.images <= _FEW:
        parser.error(f"--images must be more than {_FEW}")
    described = machine.describe([], {})
    with tempfile.TemporaryDirectory() as folder:
        found = _measured(Path(folder), parsed.images, parsed.rounds, parsed.python)
    parsed.out.write_text(_page(found, described, parsed.images, parsed.rounds), encoding="utf-8")
    _log.info("written: %s", parsed.out)


def _measured(folder: Path, images: int, rounds: int, python: Path) -> dict[str, list[Cost]]:
    _, many, few = draw_linked(folder, images, _FEW)
    # OpenVINO's conversion is made once and cached.
    _cost_of_run(_command(python, few, folder / "first", []))
    found: dict[str, list[Cost]] = {way: [] for way in _WAYS}
    for number in range(rounds):
        for way, options in _WAYS.items():
            long, short = (
                _cost_of_run(_command(python, of, folder / f"{of.name}-{number}", options)) for of in (many, few)
            )
            found[way].append(_by_difference(long, short, images))
            _log.info("round %d: %s: %s", number + 1, way, found[way][-1])
    return found


def _command(python: Path, images: Path, out: Path, options: list[str]) -> list[str]:
    output = out.with_name(out.name + (".ray" if options else ".parquet"))
    return [str(python), "-c", "from app.cli import main; main()", "features", str(images), "-o", str(output), *options]


def _by_difference(long: tuple[float, float], short: tuple[float, float], images: int) -> Cost:
    """Return the cost of an image from the additional (seconds, CPU seconds) and images of the longer of two runs."""
    image_s, image_cpu_s = ((more - less) / (images - _FEW) for more, less in zip(long, short, strict=True))
    return Cost(image_s * 1e3, image_cpu_s * 1e3, max(0.0, short[0] - image_s * _FEW))


def _cost_of_run(command: Sequence[str]) -> tuple[float, float]:
    """Return the seconds, and the last CPU seconds of the process and its descendants."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    cpu: dict[int, float] = {}
    started_at = perf_counter()
    with (
        tempfile.TemporaryFile() as log_file,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log_file, stderr=log_file) as process,  # noqa: S603
    ):
        root = psutil.Process(process.pid)
        while process.poll() is None:
            cpu |= _cpu_seconds(root)
            try:
                process.wait(_SAMPLE_S)
            except subprocess.TimeoutExpired:
                continue
        seconds = perf_counter() - started_at
        if process.returncode:
            log_file.seek(0)
            sys.exit(f"benchmarks: {shlex.join(command)} failed: {log_file.read()[-1500:].decode()}")
    return seconds, sum(cpu.values())


def _cpu_seconds(root: psutil.Process) -> dict[int, float]:
    found = {}
    for process in tree(root):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        found[process.pid] = times.user + times.system
    return found


def _page(found: Mapping[str, Sequence[Cost]], described: Mapping[str, Any], images: int, rounds: int) -> str:
    rows = [
        [
            way,
            over_rounds(cost.image_ms for cost in costs),
            over_rounds(cost.image_cpu_ms for cost in costs),
            over_rounds(cost.start_s for cost in costs),
        ]
        for way, costs in found.items()
    ]
    pairs = list(zip(found[_RAY], found[_LOCAL], strict=True))
    dearer = {
        "time": over_rounds(ours.image_ms / theirs.image_ms for ours, theirs in pairs),
        "CPU time": over_rounds(ours.image_cpu_ms / theirs.image_cpu_ms for ours, theirs in pairs),
    }
    lines = [
        "# A job on Ray",
        "",
        f"Feature vectors of EfficientNet-Lite0 for {images} JPEGs of 500 x 375, {min(images, DRAWN)} pictures under",
        "as many names, on one machine: by the command, and by the same command on a local Ray. The cost of an image",
        f"is the difference to a run of {_FEW} images; start-up is the rest of that run. Medians, with least and",
        "largest.",
        "",
        *table(["way", "ms an image", "CPU ms an image", "start-up s"], rows),
        "",
        *table(
            ["bar", "required", "measured"],
            [
                [f"{what} of an image on Ray, over that without", f"≤ {1 + _MOST_DEARER:g}", ratio]
                for what, ratio in dearer.items()
            ],
        ),
        "",
        *machine.lines(described, _PACKAGES, f"python -m benchmarks.ray_job --images {images} --rounds {rounds}"),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
