"""The process that measures ceilings, and its failures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.bench import Bench
from benchmarks.ceilings_process import ceilings
from benchmarks.plan import Plan
from benchmarks.servers import DEFAULT, MODELS, SERVERS

_SPEC = SERVERS[DEFAULT]
_PLAN = Plan(servers=(_SPEC,), models=MODELS, rounds=1, seconds=0.1)

_REPORT = json.dumps({"per_second": 50.0, "p50_ms": 20.0, "p90_ms": 21, "p99_ms": 22, "mean_ms": 20, "max_ms": 23})


@pytest.fixture
def bench(tmp_path: Path) -> Callable[[str], Bench]:
    def with_interpreter(script: str) -> Bench:
        interpreter = tmp_path / "python"
        interpreter.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        interpreter.chmod(0o700)
        return Bench({"0.2 MP": [tmp_path / "a.jpg"]}, interpreter, tmp_path / "logs")

    return with_interpreter


def test_it_is_sent_one_line_for_each_measurement_and_ends_with_the_block(bench: Callable[[str], Bench]) -> None:
    answering = bench(f"echo ready; while read way; do echo \"$way\" >&2; echo '{_REPORT}'; done")
    with ceilings(_PLAN, _SPEC, MODELS[0], 2, answering) as ceilings_process:
        alone, together = ceilings_process.measure("alone", 1), ceilings_process.measure("together", 3)
    assert (alone.server, alone.round, alone.turn) == ("one image at a time, openvino fp32", 2, 1)
    assert (alone.images_per_second, alone.latency_ms["p50"]) == (50.0, 20.0)
    assert (together.server, together.turn, dict(together.latency_ms)) == ("decode + forward, openvino fp32", 3, {})
    [log] = (answering.log_folder).iterdir()
    assert log.read_text(encoding="utf-8").split() == ["alone", "together"]


def test_a_process_that_fails_to_start_is_an_error_with_its_message(bench: Callable[[str], Bench]) -> None:
    failing = bench("echo no module named torch >&2; exit 1")
    with pytest.raises(RuntimeError, match="no module named torch"), ceilings(_PLAN, _SPEC, MODELS[0], 1, failing):
        raise AssertionError("it has begun")


def test_a_process_that_ends_early_is_an_error(bench: Callable[[str], Bench]) -> None:
    ending = bench("echo ready; read way; echo out of memory >&2; exit 1")
    with ceilings(_PLAN, _SPEC, MODELS[0], 1, ending) as ceilings_process:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"):
                ceilings_process.measure("together", 1)
