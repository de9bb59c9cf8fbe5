"""Small files that are expensive to decode, while other clients send ordinary photographs.

`python -m reliability.scenarios.costly FILE...` does the same with other files and prints the results of each. It ends
with status 1 when a bar is missed.
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
from reliability.clients import Clients, running_clients
from reliability.costly import CORPUS
from reliability.finding import Finding, Scenario, show
from reliability.pictures import draw_pictures
from reliability.scale import Scale
from reliability.serving import DEFAULT_MODEL, Served, serving
from reliability.wire import CLASSIFY, Address, Connection, Request, post

_CLIENTS = 8
_RATE = 5.0
_SECONDS_EACH = 3.0
_WARM_S = 4.0
_POLL_S = 0.1
# For the first answer afterwards; the server may have to finish the decodes first.
_TIMEOUT_S = 30.0
_WORKERS = (0, 2)

_P99_BAR_MS = 1500.0
_GROWTH_BAR_MB = 300.0

_Files = Mapping[str, Callable[[], bytes]]


class _Result(NamedTuple):
    """Results of one file."""

    file: str
    size: int
    good: Clients
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
    """Send the corpus to a server of one process and to one with two HTTP workers."""
    seconds = max(1.0, _SECONDS_EACH * scale.share)
    for workers in _WORKERS:
        yield from _findings(workers, seconds, list(_run_files(CORPUS, workers, seconds)))


def _findings(workers: int, seconds: float, results: Sequence[_Result]) -> Iterator[Finding]:
    load = f"{len(results)} files, each {_RATE:g} times a second for {seconds:g} s, with {_CLIENTS} other clients"
    scenario = Scenario("costly", f"{load}, {workers} workers")
    slow = [one for one in results if one.is_slow]
    worst = max(results, key=lambda one: one.p99_ms)
    yield scenario.finding(
        f"p99 of the clients < {_P99_BAR_MS:,.0f} ms, {workers} workers",
        f"at most {worst.p99_ms:,.0f} ms ({worst.file}){_named(slow)}",
        met=not slow,
    )
    failing = [one for one in results if one.good.unanswered]
    failed, sent = sum(one.good.unanswered for one in results), sum(one.good.requests for one in results)
    yield scenario.finding(
        f"each request of the clients is answered with 200, {workers} workers",
        f"{sent - failed:,} of {sent:,}{_named(failing)}",
        met=not failing,
    )
    large = [one for one in results if one.is_large]
    largest = max(results, key=lambda one: one.grown_mb)
    yield scenario.finding(
        f"resident memory of all processes grows by ≤ {_GROWTH_BAR_MB:g} MB, {workers} workers",
        f"at most {largest.grown_mb:+.0f} MB ({largest.file}){_named(large)}",
        met=not large,
    )
    ended = [one for one in results if not one.serves_after]
    yield scenario.finding(
        f"the same process serves afterwards, {workers} workers",
        f"{len(results) - len(ended)} of {len(results)} times{_named(ended)}",
        met=not ended,
    )


def _named(missed: Sequence[_Result]) -> str:
    return f"; missed with {', '.join(one.file for one in missed)}" if missed else ""


def _run_files(files: _Files, workers: int, seconds: float) -> Iterator[_Result]:
    """Run files one after another on one server, and on a new one after a missed bar, because decodes may go on."""
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
            result = uvloop.run(_run(served, clients, name, image, idle_bytes=idle_bytes, seconds=seconds))
            yield result
            if not result.met:
                servers.close()
                served = None


async def _warm(served: Served, clients: Sequence[Request]) -> int:
    """Return the maximum resident bytes while only the clients send."""
    async with _watching(served) as peak, running_clients(served.address, clients):
        await asyncio.sleep(_WARM_S)
    return peak[0]


async def _run(
    served: Served, clients: Sequence[Request], name: str, image: bytes, *, idle_bytes: int, seconds: float
) -> _Result:
    async with _watching(served) as peak:
        async with running_clients(served.address, clients) as good:
            costly = await _send(served.address, post(CLASSIFY, image), seconds)
        answers = await _answers(served, clients[0])
    return _Result(name, len(image), good, costly, (peak[0] - idle_bytes) / 1e6, answers and served.alive())


async def _send(address: Address, request: Request, seconds: float) -> Counter[str]:
    """Send at a constant rate, then abandon pending requests. Return the number of each outcome."""
    outcomes: Counter[str] = Counter()

    async def one() -> None:
        try:
            async with Connection(address) as connection:
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
    outcomes["abandoned"] += sum(isinstance(end, asyncio.CancelledError) for end in ends)
    return +outcomes


async def _answers(served: Served, request: Request) -> bool:
    with suppress(OSError, EOFError):
        async with asyncio.timeout(_TIMEOUT_S), Connection(served.address) as connection:
            return (await connection.answer_to(request)).status == 200  # noqa: PLR2004 - of HTTP
    return False


@asynccontextmanager
async def _watching(served: Served) -> AsyncIterator[list[int]]:
    """Yield a list of one number: the maximum resident bytes of the server and its children."""
    peak = [0]

    async def sample() -> None:
        while True:
            peak[0] = max(peak[0], await asyncio.to_thread(_resident_bytes, served.process.pid))
            await asyncio.sleep(_POLL_S)

    watching = asyncio.create_task(sample())
    try:
        yield peak
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


def _resident_bytes(pid: int) -> int:
    """Return the resident bytes of a process and its children; shared pages count for each."""
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
    parser.add_argument("files", nargs="*", type=Path, help="files to send; default: all of reliability.costly")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration for each file, 60 by default")
    parser.add_argument("--workers", type=int, action="append", help="number of HTTP workers; default: 0 and 2 in turn")
    options = parser.parse_args(arguments)
    files = {path.name: path.read_bytes for path in options.files}
    if len(files) < len(options.files):
        parser.error("two files have the same name")
    findings: list[Finding] = []
    for workers in options.workers or _WORKERS:
        results = []
        for one in _run_files(files or CORPUS, workers, options.seconds):
            results.append(one)
            _print(one, workers)
        findings += _findings(workers, options.seconds, results)
    show(findings)
    sys.exit(0 if all(finding.met for finding in findings) else 1)


def _print(result: _Result, workers: int) -> None:
    costly = ", ".join(f"{outcome}: {count}" for outcome, count in sorted(result.costly.items()))
    sys.stdout.write(
        f"{result.file} ({result.size:,} bytes), {workers} workers: clients {result.good.requests:,}, "
        f"failed {result.good.unanswered}, p99 {result.p99_ms:,.0f} ms; {result.grown_mb:+,.0f} MB; "
        f"{'serves' if result.serves_after else 'DOES NOT SERVE'} afterwards; answers to the file: {costly}\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
