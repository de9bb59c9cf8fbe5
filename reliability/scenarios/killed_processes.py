"""SIGKILL of each kind of process with two HTTP workers: worker, decoder, fork server, engine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import NamedTuple

import psutil

from models.images.samples import draw, encode
from reliability.clients import running_clients
from reliability.counted import counted, metric_families
from reliability.finding import Finding, Scenario
from reliability.known import exchange, format_counts, well_afterwards
from reliability.pictures import draw_pictures
from reliability.scale import Scale
from reliability.serving import NULL_MODEL, Served, living, serving
from reliability.wire import CLASSIFY, Address, Connection, Request, post

_WORKERS = 2
_SETTINGS = {"GRADLESS_HTTP_WORKERS": str(_WORKERS), "GRADLESS_METRICS_MAX_AGE_S": "0"}
_KILLS = 5
_ENGINE_KILLS = 3
# Each on a connection of its own, so that every worker gets some.
_REQUESTS = 16
_CLIENTS = 8
_LOAD_S = 1.0
_END_BAR_S = 5.0
_TIMEOUT_S = 30.0
_POLL_S = 0.02
_COUNTING = {"counter", "histogram", "summary"}


class _Counters:
    """Counters and histograms of a server, scraped repeatedly."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._highest: dict[tuple[str, ...], float] = {}
        self.fallen: set[str] = set()
        self.scrapes = 0

    @property
    def series(self) -> int:
        """Return the number of series so far."""
        return len(self._highest)

    async def scrape(self) -> None:
        """Scrape once; ignore a scrape that fails because a process was killed."""
        with suppress(OSError, EOFError):
            families = await metric_families(self._address)
            found = {
                (sample.name, *map(str, sorted(sample.labels.items()))): sample.value
                for family in families
                if family.type in _COUNTING
                for sample in family.samples
            }
            self.fallen |= {key[0] for key, highest in self._highest.items() if found.get(key, 0.0) < highest}
            self._highest |= found
            self.scrapes += 1


class _Ended(NamedTuple):
    """Seconds after an engine process was killed until others ended, and what had not ended by the bar."""

    processes_s: float
    processes_left: int
    clients_s: float
    clients_left: int
    ends: Counter[str]
    refused: bool


def measure(scale: Scale) -> Iterator[Finding]:
    """Kill parts of one server of the `null` model, then the engine processes of others."""
    kills = scale.count(_KILLS, least=2)
    with serving(NULL_MODEL, **_SETTINGS) as served:
        yield asyncio.run(_kill_workers(served, kills))
        yield asyncio.run(_kill_decoders(served, kills))
        yield from asyncio.run(_kill_fork_server(served))
    ended = []
    for _ in range(scale.count(_ENGINE_KILLS)):
        with serving(NULL_MODEL, **_SETTINGS) as served:
            ended.append(asyncio.run(_kill_engine(served)))
    yield from _engine_findings(ended)


async def _kill_workers(served: Served, times: int) -> Finding:
    """Kill one worker after another, each after answers that no scrape has counted."""
    request = post(CLASSIFY, draw_pictures().small)
    counters, ends = _Counters(served.address), Counter[str]()
    for number in range(times):
        await counters.scrape()
        ends += await _send_at_once(served.address, request)
        worker = served.workers()[number % _WORKERS]
        worker.kill()
        async with asyncio.timeout(_TIMEOUT_S):
            while living([worker]) or len(served.workers()) < _WORKERS:
                await counters.scrape()
                await asyncio.sleep(_POLL_S)
    await counters.scrape()
    images = (await counted(served.address)).images["ok"]
    return _scenario(f"SIGKILL of an HTTP worker, {times} times, each after {_REQUESTS} requests").finding(
        "no counter of /metrics falls, and no answered image is missing",
        f"{len(counters.fallen)} of {counters.series:,} series fell in {counters.scrapes} scrapes; images counted: "
        f"{images:,}, answered: {ends['200']:,}",
        met=not counters.fallen and images == ends["200"] == times * _REQUESTS,
    )


async def _kill_decoders(served: Served, times: int) -> Finding:
    """All that there are, each time."""
    request = post(CLASSIFY, encode(draw("clock"), "TIFF"))
    ends, killed = await _send_at_once(served.address, request), 0
    for _ in range(times):
        decoders = [process for process in served.processes() if _decodes(process)]
        for decoder in decoders:
            decoder.kill()
        killed += len(decoders)
        await _until(partial(_ended, decoders))
        ends += await _send_at_once(served.address, request)
    return _scenario(f"SIGKILL of all decoder processes, {times} times, {_REQUESTS} TIFFs after each").finding(
        "each image is answered with 200",
        f"{format_counts(ends)}; {killed} killed",
        met=ends.keys() == {"200"} and killed >= times,
    )


async def _kill_fork_server(served: Served) -> list[Finding]:
    """Kill the fork server, then the workers that it had forked, then send SIGTERM."""
    load = "SIGKILL of the fork server"
    fork_server, workers, processes = served.fork_server(), served.workers(), served.processes()
    if fork_server is None:
        raise RuntimeError("there is no fork server")
    async with running_clients(served.address, [post(CLASSIFY, draw_pictures().small)] * _CLIENTS) as clients:
        fork_server.kill()
        await _until(lambda: served.fork_server() not in {None, fork_server})
        await asyncio.sleep(_LOAD_S)
    began = perf_counter()
    for number, worker in enumerate(workers, 1):
        worker.kill()
        await _until(partial(_has_workers, served, number))
    replaced_s = perf_counter() - began
    well, afterwards = await well_afterwards(served.address)
    processes += served.processes()
    status = await asyncio.to_thread(served.stop)
    ended_s = await _seconds_until(partial(_ended, processes))
    return [
        _scenario(f"{load} under the load of {_CLIENTS} clients").finding(
            "each request is answered with 200",
            f"{clients.statuses[200]:,} of {clients.requests:,}",
            met=clients.requests > 0 and not clients.unanswered,
        ),
        _scenario(f"{load}, then of each worker").finding(
            "each is replaced; ready and answering afterwards",
            f"{len(workers)} replaced in {replaced_s:.1f} s; {afterwards}",
            met=well,
        ),
        _scenario(f"{load} and of each worker, then SIGTERM").finding(
            "the service exits with status 0, and no process is left",
            f"status {status}, {len(living(processes))} left {ended_s:.1f} s later",
            met=status == 0 and not living(processes),
        ),
    ]


async def _kill_engine(served: Served) -> _Ended:
    """Kill the engine process while clients wait for answers and one has sent half a request."""
    await _send_at_once(served.address, post(CLASSIFY, encode(draw("clock"), "TIFF")))
    processes = served.processes()
    ends: Counter[str] = Counter()
    request = post(CLASSIFY, draw_pictures().photograph)
    clients = [asyncio.create_task(_client(served.address, request, ends)) for _ in range(_CLIENTS)]
    clients.append(asyncio.create_task(_silent_client(served.address)))
    await asyncio.sleep(_LOAD_S)
    ends.clear()
    served.process.kill()
    try:
        began = perf_counter()
        waiting = asyncio.create_task(asyncio.wait(clients, timeout=_TIMEOUT_S))
        processes_s = await _seconds_until(partial(_ended, processes))
        _, left = await waiting
        clients_s = max((client.result() for client in clients if client not in left), default=began) - began
        for client in left:
            client.cancel()
        return _Ended(processes_s, len(living(processes)), clients_s, len(left), ends, await _refused(served.address))
    finally:
        for process in living(processes):
            process.kill()


def _engine_findings(ended: Sequence[_Ended]) -> Iterator[Finding]:
    scenario = _scenario(
        f"SIGKILL of the engine process under the load of {_CLIENTS} clients with 12 MP, {len(ended)} times"
    )
    processes_s = max(one.processes_s for one in ended)
    left = sum(one.processes_left for one in ended)
    refused = all(one.refused for one in ended)
    yield scenario.finding(
        f"every process has ended within {_END_BAR_S:g} s, and nothing listens",
        f"longest {processes_s:.2f} s, {left} left; {'nothing listens' if refused else 'something listens'}",
        met=not left and processes_s <= _END_BAR_S and refused,
    )
    clients_s = max(one.clients_s for one in ended)
    left = sum(one.clients_left for one in ended)
    ends = sum((one.ends for one in ended), Counter[str]())
    yield scenario.finding(
        f"every client has an answer or an error within {_END_BAR_S:g} s",
        f"longest {clients_s:.2f} s, {left} still wait; {format_counts(ends)}",
        met=not left and clients_s <= _END_BAR_S,
    )


def _scenario(load: str) -> Scenario:
    return Scenario("killed-processes", f"GRADLESS_HTTP_WORKERS={_WORKERS}: {load}")


async def _send_at_once(address: Address, request: Request) -> Counter[str]:
    """Send requests at once, each on its own connection, and return how they ended."""

    async def send() -> str:
        async with Connection(address) as connection:
            return (await exchange(connection, request))[0]

    return Counter(await asyncio.gather(*(send() for _ in range(_REQUESTS))))


async def _client(address: Address, request: Request, ends: Counter[str]) -> float:
    """Repeat the request until the connection ends, and return when that was."""
    async with Connection(address) as connection:
        while True:
            end, answer = await exchange(connection, request)
            ends[end] += 1
            if answer is None:
                return perf_counter()


async def _silent_client(address: Address) -> float:
    """Send half a request, and return when the connection ended."""
    async with Connection(address) as connection:
        with suppress(OSError):
            await connection.send(post(CLASSIFY, b"half of it").wire[:-5])
            await connection.ended()
    return perf_counter()


async def _refused(address: Address) -> bool:
    try:
        async with Connection(address) as connection:
            await connection.send(b"")
    except ConnectionRefusedError:
        return True
    return False


def _ended(processes: Sequence[psutil.Process]) -> bool:
    return not living(processes)


def _has_workers(served: Served, number: int) -> bool:
    return len(served.workers()) == number


def _decodes(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return "models.images.decoder_process" in process.cmdline()
    return False


async def _until(holds: Callable[[], bool]) -> None:
    """Raises TimeoutError."""
    async with asyncio.timeout(_TIMEOUT_S):
        # Other processes have no event to wait for.
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)


async def _seconds_until(holds: Callable[[], bool]) -> float:
    """Return the seconds until it holds, at most the time-out."""
    began = perf_counter()
    with suppress(TimeoutError):
        await _until(holds)
    return perf_counter() - began
