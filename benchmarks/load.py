"""Load on a server from separate processes: closed loop by wrk or, over gRPC, by benchmarks.grpc_loop; open loop by
benchmarks.open_loop.

The result includes the CPU time of the load, from the operating system.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench import ROOT
from benchmarks.processes import RunningServer

_SCRIPT = Path(__file__).with_name("rotate.lua")

# Longer than any measured latency; a slower request counts as failed.
TIMEOUT_S = 60

# Share of a closed loop in which the first batches form, and which does not count for the rate.
_WARM = 0.25


@dataclass(frozen=True, slots=True)
class Loaded:
    """The report of the load's process, and the CPU shares (1: every core busy) while it ran."""

    report: dict[str, Any]
    client_cpu_share: float
    server_cpu_share: float
    server_cpu_seconds: float


def require_wrk() -> None:
    """Raise RuntimeError with the command that installs wrk, if it is missing."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is missing: apt-get install wrk")


def closed_loop(
    server: RunningServer,
    bodies: Sequence[Path],
    *,
    connections: int,
    seconds: float,
    warm_part: float = _WARM,
    threads: int = 1,
) -> Loaded:
    """Run `connections` clients in `threads` of wrk, each sending its next request when the last is answered.

    The rate counts after the first `warm_part` of the time, in which the first batches form.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listing:
        listing.write("\n".join(map(str, bodies)))
        listing.flush()
        command = ["wrk", "--threads", str(threads), "--connections", str(connections)]
        command += ["--duration", f"{round(seconds)}s"]
        command += ["--timeout", f"{TIMEOUT_S}s", "--script", str(_SCRIPT), server.url]
        return _run(
            command,
            server,
            BENCH_BODIES=listing.name,
            BENCH_WARM_S=str(seconds * warm_part),
            BENCH_HEADERS="\n".join(server.headers),
        )


def open_loop(
    server: RunningServer,
    bodies: Sequence[Path],
    *,
    rate: float,
    seconds: float,
    seed: int,
    filling: int = 0,
    filling_s: float = 0.0,
) -> Loaded:
    """Send `rate` requests a second on average at random moments (Poisson), after `filling` uncounted ones in
    `filling_s`."""
    command = [sys.executable, "-m", "benchmarks.open_loop", "--url", server.url, "--rate", str(rate)]
    command += ["--seconds", str(seconds), "--seed", str(seed), "--timeout", str(TIMEOUT_S)]
    command += ["--filling", str(filling), "--filling-seconds", str(filling_s)]
    command += [f"--header={header}" for header in server.headers]
    command += map(str, bodies)
    return _run(command, server)


def grpc_closed_loop(
    server: RunningServer, address: str, method: str, messages: Sequence[Path], *, connections: int, seconds: float
) -> Loaded:
    """Run `connections` clients over gRPC to `server` at `address` (HOST:PORT), as closed_loop does over HTTP."""
    command = [sys.executable, "-m", "benchmarks.grpc_loop", "--address", address, "--method", method]
    command += ["--connections", str(connections), "--seconds", str(seconds), "--warm-seconds", str(seconds * _WARM)]
    return _run([*command, *map(str, messages)], server)


def _run(command: list[str], server: RunningServer, **variables: str) -> Loaded:
    server.wait_until_idle()
    client_before = resource.getrusage(resource.RUSAGE_CHILDREN)
    server_before = server.cpu_seconds()
    done = subprocess.run(  # noqa: S603 - composed above
        command, cwd=ROOT, env={**os.environ, **variables}, check=True, capture_output=True, text=True
    )
    server_seconds = server.cpu_seconds() - server_before
    client_after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    whole = (client_after.ru_utime - client_before.ru_utime) + (client_after.ru_stime - client_before.ru_stime)
    client_seconds = report.get("cpu_seconds", whole)
    all_cores = report["seconds"] * (os.cpu_count() or 1)
    return Loaded(report, client_seconds / all_cores, server_seconds / all_cores, server_seconds)
