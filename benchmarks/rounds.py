"""The order of measurements: every server once in each round, so that changes of the machine affect all alike."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator

from benchmarks import in_process, starts
from benchmarks.bench import Bench
from benchmarks.measurement import Measurement
from benchmarks.plan import Plan
from benchmarks.processes import ServerFailedError
from benchmarks.visits import visit

_log = logging.getLogger(__name__)

Keep = Callable[[Measurement], None]


def measure(plan: Plan, bench: Bench, keep: Keep) -> None:
    """Run `plan`, and pass each measurement to `keep` at once."""
    for number in range(1, plan.rounds + 1):
        for model in plan.visited_models:
            for spec in plan.servers_of(model):
                _keep_all(visit(plan, spec, model, number, bench), f"{spec.name}, {model}", keep)
        if plan.gradless_engines:
            _keep_all(in_process.preprocessing(plan, number, bench), "preprocessing", keep)
            _keep_all(starts.measure(number, bench), "starts", keep)
    if plan.gradless_engines:
        _keep_all(in_process.agreement(plan, bench), "agreement", keep)


def _keep_all(measurements: Iterator[Measurement], what: str, keep: Keep) -> None:
    try:
        for measurement in measurements:
            keep(measurement)
    except (ServerFailedError, subprocess.SubprocessError, RuntimeError) as error:
        # Continue with the others; the report shows the gap.
        _log.error("%s: %s", what, error)
