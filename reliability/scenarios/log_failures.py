"""A log that nobody reads, that stalls, that is full or closed: requests are answered, and SIGTERM ends the service."""

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
from reliability.callers import Callers, calling
from reliability.counted import metric_families
from reliability.finding import Finding, Scenario
from reliability.pictures import draw_pictures
from reliability.scale import Scale
from reliability.serving import NULL_MODEL
from reliability.wire import CLASSIFY, Connection, Place, get, post

_CALLERS = 8
_LOAD_SHARE = 0.05
_START_TIMEOUT_S = 90
_LOOKING_S = 0.1
_END_BAR_S = 10.0
_STOP_TIMEOUT_S = 60

# What stderr is.
_UNREAD = "a pipe that nobody reads any more"
_STALLED = "a pipe whose reader stalls"
_FULL = "a full disk"
_CLOSED = "closed"
_LOGS = (_UNREAD, _STALLED, _FULL, _CLOSED)


class _Seen(NamedTuple):
    callers: Callers
    dropped: float
    status: int
    ending_s: float


def measure(scale: Scale) -> Iterator[Finding]:
    """A server of the null model for each, as one process and behind two workers."""
    load_s = max(2.0, scale.seconds * _LOAD_SHARE)
    for log in _LOGS:
        for workers in (0, 2):
            processes = f"{workers} workers" if workers else "one process"
            scenario = Scenario("log-failures", f"stderr is {log}, {processes}, {_CALLERS} callers for {load_s:g} s")
            with _process(log, workers) as (process, place):
                seen = asyncio.run(_load_and_end(process, place, load_s))
            yield scenario.finding(
                "all are answered with 200",
                f"{seen.callers.statuses[200]:,} of {seen.callers.requests:,}, {seen.dropped:,.0f} lines dropped",
                met=bool(seen.callers.requests) and not seen.callers.unanswered,
            )
            yield scenario.finding(
                f"SIGTERM ends it with status 0 within {_END_BAR_S:g} s",
                f"status {seen.status} after {seen.ending_s:.1f} s",
                met=seen.status == 0 and seen.ending_s <= _END_BAR_S,
            )


async def _load_and_end(process: subprocess.Popen[bytes], place: Place, load_s: float) -> _Seen:
    await _ready(place)
    async with calling(place, [post(CLASSIFY, draw_pictures().small)] * _CALLERS) as callers:
        await asyncio.sleep(load_s)
    dropped = await _dropped(place)
    began = perf_counter()
    process.send_signal(signal.SIGTERM)
    status = await asyncio.to_thread(process.wait, _STOP_TIMEOUT_S)
    return _Seen(callers, dropped, status, perf_counter() - began)


async def _ready(place: Place) -> None:
    """Its log does not say where it serves. Raises TimeoutError."""
    async with asyncio.timeout(_START_TIMEOUT_S):
        status = None
        while status != 200:  # noqa: PLR2004 - of HTTP
            await asyncio.sleep(_LOOKING_S)
            with suppress(OSError, EOFError):
                async with Connection(place) as connection:
                    status = (await connection.answer_to(get("/readyz"))).status


async def _dropped(place: Place) -> float:
    return sum(
        sample.value
        for family in await metric_families(place)
        for sample in family.samples
        if sample.name == "gradless_log_lines_dropped_total"
    )


@contextmanager
def _process(log: str, workers: int) -> Iterator[tuple[subprocess.Popen[bytes], Place]]:
    place = Place("127.0.0.1", free_port())
    settings = {
        "GRADLESS_MODELS": NULL_MODEL,
        "GRADLESS_HTTP_WORKERS": str(workers),
        "GRADLESS_PORT": str(place.port),
    }
    gradless = str(Path(sys.executable).parent / "gradless")
    command = ["sh", "-c", 'exec "$0" serve 2>&-', gradless] if log == _CLOSED else [gradless, "serve"]
    with _stderr(log) as stderr, _started(command, settings, stderr) as process:
        try:
            yield process, place
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
