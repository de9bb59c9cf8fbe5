"""Files that are small to send and expensive to decode, beside clients with ordinary photographs.

As a command, `python -m reliability.scenarios.costly FILE...` does the same with other files and prints what each of
them did. It ends with status 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import uvloop

from benchmarks.statistic import percentile
from reliability.callers import Callers, calling
from reliability.costly import CORPUS
from reliability.finding import Finding, Scenario, show
from reliability.pictures import draw_pictures
from reliability.scale import Scale
from reliability.serving import DEFAULT_MODEL, Served, serving
from reliability.wire import CLASSIFY, Connection, Place, Request, post

_CLIENTS = 8
_RATE = 5.0
_SECONDS_EACH = 3.0
_WARM_S = 4.0
_LOOKING_S = 0.1
# For a first answer after the costly files, from a server that may have to end their decodes first.
_PATIENCE_S = 30.0
_WORKERS = (0, 2)

_P99_BAR_MS = 1500.0
_GROWTH_BAR_MB = 300.0

_Files = Mapping[str, Callable[[], bytes]]


class _Seen(NamedTuple):
    """What happened beside one file."""

    file: str
    size: int
    good: Callers
    costly: Counter[str]
    grown_mb: float
    serves_after: bool

    @property
    def p99_ms(self) -> float:
        return percentile(sorted(self.good.latencies_ms), 99) if self.good.latencies_ms else float("inf")

    @property
    def is_slow(self) -> bool:
        return self.p99_ms > _P99_BAR_MS

    @property
    def is_large(self) -> bool:
        return self.grown_mb > _GROWTH_BAR_MB

    @property
    def met(self) -> bool:
        return self.serves_after and not (self.is_slow or self.is_large or self.good.unanswered)


def measure(scale: Scale) -> Iterator[Finding]:
    """The corpus, by a server that is one process and by one with two workers."""
    seconds = max(1.0, _SECONDS_EACH * scale.share)
    for workers in _WORKERS:
        yield from _judged(workers, seconds, list(_beside(CORPUS, workers, seconds)))


def _judged(workers: int, seconds: float, seen: Sequence[_Seen]) -> Iterator[Finding]:
    load = f"{len(seen)} files, each {_RATE:g} times a second for {seconds:g} s beside {_CLIENTS} clients"
    scenario = Scenario("costly", f"{load}, {workers} workers")
    slow = [one for one in seen if one.is_slow]
    worst = max(seen, key=lambda one: one.p99_ms)
    yield scenario.finding(
        f"p99 of the clients < {_P99_BAR_MS:,.0f} ms, {workers} workers",
        f"at most {worst.p99_ms:,.0f} ms ({worst.file}){_named(slow)}",
        met=not slow,
    )
    failing = [one for one in seen if one.good.unanswered]
    failed, sent = sum(one.good.unanswered for one in seen), sum(one.good.requests for one in seen)
    yield scenario.finding(
        f"each client is answered with 200, {workers} workers",
        f"{sent - failed:,} of {sent:,}{_named(failing)}",
        met=not failing,
    )
    large = [one for one in seen if one.is_large]
    largest = max(seen, key=lambda one: one.grown_mb)
    yield scenario.finding(
        f"resident memory of all processes grows by ≤ {_GROWTH_BAR_MB:g} MB, {workers} workers",
        f"at most {largest.grown_mb:+.0f} MB ({largest.file}){_named(large)}",
        met=not large,
    )
    ended = [one for one in seen if not one.serves_after]
    yield scenario.finding(
        f"the same process serves afterwards, {workers} workers",
        f"{len(seen) - len(ended)} of {len(seen)} times{_named(ended)}",
        met=not ended,
    )


def _named(missed: Sequence[_Seen]) -> str:
    return f"; missed with {', '.join(one.file for one in missed)}" if missed else ""


def _beside(files: _Files, workers: int, seconds: float) -> Iterator[_Seen]:
    """One after another on one server. After a missed bar the next file gets a new one: decodes may go on for long."""
    pictures = draw_pictures()
    good = [post(CLASSIFY, image) for image in (pictures.clock, pictures.clock, pictures.clock, pictures.photograph)]
    clients = good * (_CLIENTS // len(good))
    with ExitStack() as servers:
        served, idle_bytes = None, 0
        for name, make in files.items():
            if served is None:
                served = servers.enter_context(serving(DEFAULT_MODEL, GRADLESS_HTTP_WORKERS=str(workers)))
                idle_bytes = uvloop.run(_warm(served, clients))
            image = make()
            seen = uvloop.run(_run(served, clients, name, image, idle_bytes=idle_bytes, seconds=seconds))
            yield seen
            if not seen.met:
                servers.close()
                served = None


async def _warm(served: Served, clients: Sequence[Request]) -> int:
    """Return the most bytes that are resident while the clients are alone."""
    async with _watching(served) as peak, calling(served.place, clients):
        await asyncio.sleep(_WARM_S)
    return peak[0]


async def _run(
    served: Served, clients: Sequence[Request], name: str, image: bytes, *, idle_bytes: int, seconds: float
) -> _Seen:
    async with _watching(served) as peak:
        async with calling(served.place, clients) as good:
            costly = await _send(served.place, post(CLASSIFY, image), seconds)
        answers = await _answers(served, clients[0])
    return _Seen(name, len(image), good, costly, (peak[0] - idle_bytes) / 1e6, answers and served.alive())


async def _send(place: Place, request: Request, seconds: float) -> Counter[str]:
    """At a constant rate, whatever has been answered; then all who wait leave. Return how often each answer came."""
    outcomes: Counter[str] = Counter()

    async def one() -> None:
        try:
            async with Connection(place) as connection:
                answer = await connection.answer_to(request)
        except (OSError, EOFError):
            outcomes["broken off"] += 1
        else:
            outcomes[str(answer.status)] += 1

    sent = []
    for _ in range(max(1, round(seconds * _RATE))):
        sent.append(asyncio.create_task(one()))
        await asyncio.sleep(1 / _RATE)
    for task in sent:
        task.cancel()
    ends = await asyncio.gather(*sent, return_exceptions=True)
    outcomes["left"] += sum(isinstance(end, asyncio.CancelledError) for end in ends)
    return +outcomes


async def _answers(served: Served, request: Request) -> bool:
    with suppress(OSError, EOFError):
        async with asyncio.timeout(_PATIENCE_S), Connection(served.place) as connection:
            return (await connection.answer_to(request)).status == 200  # noqa: PLR2004 - of HTTP
    return False


@asynccontextmanager
async def _watching(served: Served) -> AsyncIterator[list[int]]:
    """Yield a list of one number: the most bytes that were resident at once in the server and its children."""
    peak = [0]

    async def look() -> None:
        while True:
            peak[0] = max(peak[0], await asyncio.to_thread(_resident_bytes, served.process.pid))
            await asyncio.sleep(_LOOKING_S)

    watching = asyncio.create_task(look())
    try:
        yield peak
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


def _resident_bytes(pid: int) -> int:
    """Of a process and its children. Pages that they share count once for each of them."""
    resident = 0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                resident += process.memory_info().rss
    return resident


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m reliability.scenarios.costly", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="files to send; all of reliability.costly unless given")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each file, 60 unless told")
    parser.add_argument(
        "--workers", type=int, action="append", help="a run with so many; unless given, 0 and 2 in turn"
    )
    wanted = parser.parse_args(arguments)
    files = {path.name: path.read_bytes for path in wanted.files}
    if len(files) < len(wanted.files):
        parser.error("two files have the same name")
    findings: list[Finding] = []
    for workers in wanted.workers or _WORKERS:
        seen = []
        for one in _beside(files or CORPUS, workers, wanted.seconds):
            seen.append(one)
            _say(one, workers)
        findings += _judged(workers, wanted.seconds, seen)
    show(findings)
    sys.exit(0 if all(finding.met for finding in findings) else 1)


def _say(seen: _Seen, workers: int) -> None:
    costly = ", ".join(f"{outcome}: {count}" for outcome, count in sorted(seen.costly.items()))
    sys.stdout.write(
        f"{seen.file} ({seen.size:,} bytes), {workers} workers: clients {seen.good.requests:,}, "
        f"failed {seen.good.unanswered}, p99 {seen.p99_ms:,.0f} ms; {seen.grown_mb:+,.0f} MB; "
        f"{'serves' if seen.serves_after else 'DOES NOT SERVE'} afterwards; its own answers: {costly}\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
