"""Measure a server's ceilings by a process that is idle while the server is measured, so that compared figures are
seconds and not minutes apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from benchmarks.bench import ROOT, Bench
from benchmarks.measurement import Ceiling, Measurement, ceiling_name, latency
from benchmarks.plan import Plan
from benchmarks.servers import CATALOG_NAMES, ServerSpec

# Includes compiling and calibrating.
_TIMEOUT_S = 1800.0


class Ceilings:
    """A ready process of benchmarks.ceilings in the project's environment."""

    def __init__(self, process: subprocess.Popen[str], log: Path, engine: str, model: str, number: int) -> None:
        self._requests = cast("IO[str]", process.stdin)
        self._answers = cast("IO[str]", process.stdout)
        self._log = log
        self._engine = engine
        self._model = model
        self._round = number
        # The line `ready`.
        self._line()

    def measure(self, ceiling: Ceiling, turn: int) -> Measurement:
        """Measure while everything else is idle. Raises RuntimeError with the end of the log if the process has
        ended."""
        # Unbuffered, because a buffer would be written again on close. The read below detects an ended process.
        with suppress(BrokenPipeError):
            os.write(self._requests.fileno(), f"{ceiling}\n".encode())
        report = json.loads(self._line())
        return Measurement(
            kind="ceiling",
            server=ceiling_name(ceiling, self._engine),
            model=self._model,
            round=self._round,
            turn=turn,
            images_per_second=report["per_second"],
            latency_ms=latency(report) if ceiling == "alone" else {},
        )

    def _line(self) -> str:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"ceilings of {self._engine}:\n{self._log.read_text(errors='replace')[-1500:]}")
        return line


@contextmanager
def ceilings(plan: Plan, spec: ServerSpec, model: str, number: int, bench: Bench) -> Iterator[Ceilings]:
    """Run the process for one configuration of gradless until the block ends. Raises RuntimeError."""
    log = bench.log_folder / f"ceilings {spec.name} {model}.log".replace(" ", "-")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [str(bench.project_python), "-W", "ignore", "-m", "benchmarks.ceilings"]
    command += ["--model", CATALOG_NAMES[model], "--backend", str(spec.backend), "--precision", spec.precision]
    command += ["--seconds", str(plan.seconds), "--calibration-folder", str(bench.usual_folder)]
    with (
        log.open("w", encoding="utf-8") as log_file,
        subprocess.Popen(  # noqa: S603 - ours
            [*command, *map(str, bench.usual)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
        ) as process,
    ):
        timeout = threading.Timer(_TIMEOUT_S, process.kill)
        timeout.start()
        try:
            yield Ceilings(process, log, spec.engine, model, number)
        finally:
            timeout.cancel()
            process.kill()
