"""Measure every way in turn, round by round, and write the page: `python -m benchmarks.folders`."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from benchmarks import machine, pictures
from benchmarks.bench import ROOT, Bench
from benchmarks.folders import page
from benchmarks.folders.page import Measured
from benchmarks.load import closed_loop, require_wrk
from benchmarks.processes import running
from benchmarks.servers import SERVERS

_log = logging.getLogger("benchmarks.folders")

_PAGE = ROOT / "benchmarks/results/folders.md"

_CONNECTIONS = 32


def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.folders", description="compare gradless features with other ways"
    )
    parser.add_argument("--images", type=int, default=5000, help=f"files, more than {page.FEW}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--python", type=Path, default=ROOT / ".venv/bin/python", help="interpreter of gradless's environment"
    )
    parser.add_argument("--out", type=Path, default=_PAGE, help="page to write")
    options = parser.parse_args()
    if options.images <= page.FEW:
        parser.error(f"--images must be more than {page.FEW}")
    try:
        require_wrk()
    except RuntimeError as error:
        sys.exit(f"benchmarks: {error}")
    described = machine.describe([], {})
    with tempfile.TemporaryDirectory() as folder:
        found = _measured(Path(folder), options.images, options.rounds, options.python)
    options.out.write_text(page.of(found, described, options.images, options.rounds), encoding="utf-8")
    _log.info("written: %s", options.out)


def _measured(folder: Path, images: int, rounds: int, python: Path) -> dict[str, list[Measured]]:
    drawn, many, few = pictures.draw_linked(folder, images, page.FEW)
    command = [str(python), "-c", "from app.cli import main; main()", "features"]
    out = str(folder / "out.npy")
    by_hand = [str(python), "-m", "benchmarks.folders.hand_written"]
    found: dict[str, list[Measured]] = defaultdict(list)
    # OpenVINO's conversion is made once and cached.
    _seconds([*command, str(few), "-o", str(folder / "first.npy")])
    for number in range(1, rounds + 1):
        found[page.COMMAND].append(_by_difference(lambda of: [*command, str(of), "-o", out], many, few, images))
        seconds = images / found[page.COMMAND][-1].per_second
        found[page.CEILING].append(_ceiling(python, drawn, seconds))
        found[page.BY_HAND].append(_by_difference(lambda of: [*by_hand, str(of), out], many, few, images))
        found[page.SERVICE].append(_service(python, drawn, seconds, folder / "logs"))
        _log.info("round %d: %s", number, {way: round(of_way[-1].per_second, 1) for way, of_way in found.items()})
    return found


def _by_difference(command: Callable[[Path], list[str]], many: Path, few: Path, images: int) -> Measured:
    """Return the rate from the additional time and images of the longer of two runs."""
    long_s, short_s = _seconds(command(many)), _seconds(command(few))
    per_second = (images - page.FEW) / (long_s - short_s)
    return Measured(per_second, max(0.0, short_s - page.FEW / per_second))


def _ceiling(python: Path, drawn: Path, seconds: float) -> Measured:
    command = [str(python), "-m", "benchmarks.folders.ceiling", str(drawn), str(seconds)]
    return Measured(float(_run(command).stdout))


def _service(python: Path, drawn: Path, seconds: float, logs: Path) -> Measured:
    spec = replace(SERVERS["gradless openvino fp32"], path="/v1/features")
    bench = Bench({"0.2 MP": sorted(drawn.iterdir())}, python, logs)
    with running(spec, "efficientnet_lite0", bench) as server:
        loaded = closed_loop(server, bench.usual, connections=_CONNECTIONS, seconds=max(4.0, seconds))
        return Measured(loaded.report["steady_per_second"], server.start_seconds)


def _seconds(command: Sequence[str]) -> float:
    started_at = perf_counter()
    _run(command)
    return perf_counter() - started_at


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        sys.exit(f"benchmarks: {shlex.join(command)} failed: {done.stderr[-1500:]}")
    return done


if __name__ == "__main__":
    main()
