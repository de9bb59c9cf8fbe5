"""The ceilings of one server, measured beside it: by a process that is there as long as the server is, and does nothing
until it is asked. So what is compared was measured with a breath between, not with minutes.
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

# Compiling, or calibrating, before it begins.
_TIMEOUT_S = 1800.0


class Ceilings:
    """benchmarks.ceilings in the project's environment, ready."""

    def __init__(self, process: subprocess.Popen[str], log: Path, engine: str, model: str, number: int) -> None:
        self._asked = cast("IO[str]", process.stdin)
        self._answers = cast("IO[str]", process.stdout)
        self._log = log
        self._engine = engine
        self._model = model
        self._round = number
        # That it is ready.
        self._line()

    def measure(self, ceiling: Ceiling, turn: int) -> Measurement:
        """With everything else idle. Raises RuntimeError when the process has ended, with the end of what it said."""
        # Past the buffer, which would be written again when the pipe is closed. That it has ended is seen below.
        with suppress(BrokenPipeError):
            os.write(self._asked.fileno(), f"{ceiling}\n".encode())
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
    """For one way that gradless is measured, until the block ends. Raises RuntimeError."""
    log = bench.log_folder / f"ceilings {spec.name} {model}.log".replace(" ", "-")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [str(bench.project_python), "-W", "ignore", "-m", "benchmarks.ceilings"]
    command += ["--model", CATALOG_NAMES[model], "--backend", str(spec.backend), "--precision", spec.precision]
    command += ["--seconds", str(plan.seconds), "--calibration-folder", str(bench.usual_folder)]
    with (
        log.open("w", encoding="utf-8") as complaints,
        subprocess.Popen(  # noqa: S603 - ours
            [*command, *map(str, bench.usual)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        ) as process,
    ):
        patience = threading.Timer(_TIMEOUT_S, process.kill)
        patience.start()
        try:
            yield Ceilings(process, log, spec.engine, model, number)
        finally:
            patience.cancel()
            process.kill()
