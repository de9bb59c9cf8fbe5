"""The log cannot be written: requests are answered, and SIGTERM ends the service."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from observe.processes import free_port
from reliability.clients import Clients, running_clients
from reliability.counted import metric_families
from reliability.finding import Finding, Scenario
from reliability.pictures import draw_pictures
from reliability.scale import Scale
from reliability.serving import NULL_MODEL
from reliability.wire import CLASSIFY, Address, Connection, get, post

_CLIENTS = 8
_LOAD_SHARE = 0.05
_START_TIMEOUT_S = 90
_POLL_S = 0.1
_END_BAR_S = 10.0
_STOP_TIMEOUT_S = 60

# Kinds of stderr.
_UNREAD = "a pipe without a reader"
_STALLED = "a pipe whose reader stalls"
_FULL = "a full disk"
_CLOSED = "closed"
_LOGS = (_UNREAD, _STALLED, _FULL, _CLOSED)


class _Result(NamedTuple):
    clients: Clients
    dropped: float
    status: int
    ending_s: float


def measure(scale: Scale) -> Iterator[Finding]:
    """Run a server of the null model for each kind of stderr, with and without workers."""
    load_s = max(2.0, scale.seconds * _LOAD_SHARE)
    for log in _LOGS:
        for workers in (0, 2):
            processes = f"{workers} workers" if workers else "one process"
            scenario = Scenario("log-failures", f"stderr is {log}, {processes}, {_CLIENTS} clients for {load_s:g} s")
            with _process(log, workers) as (process, address):
                result = asyncio.run(_load_and_end(process, address, load_s))
            yield scenario.finding(
                "all requests are answered with 200",
                f"{result.clients.statuses[200]:,} of {result.clients.requests:,}, {result.dropped:,.0f} lines dropped",
                met=bool(result.clients.requests) and not result.clients.unanswered,
            )
            yield scenario.finding(
                f"SIGTERM ends the service with status 0 within {_END_BAR_S:g} s",
                f"status {result.status} after {result.ending_s:.1f} s",
                met=result.status == 0 and result.ending_s <= _END_BAR_S,
            )


async def _load_and_end(process: subprocess.Popen[bytes], address: Address, load_s: float) -> _Result:
    await _ready(address)
    async with running_clients(address, [post(CLASSIFY, draw_pictures().small)] * _CLIENTS) as clients:
        await asyncio.sleep(load_s)
    dropped = await _dropped(address)
    began = perf_counter()
    process.send_signal(signal.SIGTERM)
    status = await asyncio.to_thread(process.wait, _STOP_TIMEOUT_S)
    return _Result(clients, dropped, status, perf_counter() - began)


async def _ready(address: Address) -> None:
    """Wait for readiness; the log cannot report it. Raises TimeoutError."""
    async with asyncio.timeout(_START_TIMEOUT_S):
        status = None
        while status != 200:  # noqa: PLR2004 - of HTTP
            await asyncio.sleep(_POLL_S)
            with suppress(OSError, EOFError):
                async with Connection(address) as connection:
                    status = (await connection.answer_to(get("/readyz"))).status


async def _dropped(address: Address) -> float:
    return sum(
        sample.value
        for family in await metric_families(address)
        for sample in family.samples
        if sample.name == "gradless_log_lines_dropped_total"
    )


@contextmanager
def _process(log: str, workers: int) -> Iterator[tuple[subprocess.Popen[bytes], Address]]:
    address = Address("127.0.0.1", free_port())
    settings = {
        "GRADLESS_MODELS": NULL_MODEL,
        "GRADLESS_HTTP_WORKERS": str(workers),
        "GRADLESS_PORT": str(address.port),
    }
    gradless = str(Path(sys.executable).parent / "gradless")
    command = ["sh", "-c", 'exec "$0" serve 2>&-', gradless] if log == _CLOSED else [gradless, "serve"]
    with _stderr(log) as stderr, _started(command, settings, stderr) as process:
        try:
            yield process, address
        finally:
            process.kill()


def _started(command: list[str], settings: Mapping[str, str], stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - composed above
        command,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )


@contextmanager
def _stderr(log: str) -> Iterator[int]:
    if log == _FULL:
        with Path("/dev/full").open("wb") as full:
            yield full.fileno()
        return
    read, write = os.pipe()
    with open(write, "wb") as pipe, open(read, "rb") as reader:  # noqa: PTH123 - they have no paths
        if log == _UNREAD:
            reader.close()
        yield pipe.fileno()
