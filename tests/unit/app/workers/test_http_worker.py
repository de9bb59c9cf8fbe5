"""Connections go to the HTTP worker with the fewest, and to another if that one does not take them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, cast

import pytest

from app.server.listener import Acceptor
from app.workers.http_worker import NO_FILES, TAKEN, HttpWorker, WorkerStatus, dispatch

pytestmark = pytest.mark.anyio

_TIMEOUT_S = 60


class _Worker:
    """A worker as the engine process knows it, and the worker's end of the socket."""

    def __init__(self) -> None:
        dispatch_socket, self.end = socket.socketpair()
        dispatch_socket.setblocking(False)
        self.end.settimeout(_TIMEOUT_S)
        self.status = WorkerStatus(ticks=1)
        self.known = HttpWorker(cast("Any", None), dispatch_socket, self.status, cast("Any", None), ticks=1)

    def connections(self, number: int) -> list[socket.socket]:
        """Return the next connections that it was sent, without a reply."""
        taken: list[socket.socket] = []
        while len(taken) < number:
            _, descriptors, _, _ = socket.recv_fds(self.end, number - len(taken), number)
            taken += [socket.socket(fileno=descriptor) for descriptor in descriptors]
        return taken

    def take(self, number: int) -> list[socket.socket]:
        taken = self.connections(number)
        before = self.known.open_connections
        self.status.open_connections += number
        self.status.received += number
        # Each counts once, also before its reply is read.
        assert self.known.open_connections == before
        self.end.send(TAKEN * number)
        assert self.known.read_replies() == []
        return taken

    def close(self) -> None:
        for end in (self.end, self.known.dispatch_socket, *self.known.unacknowledged):
            end.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener


@pytest.fixture
def worker() -> Iterator[Callable[[], _Worker]]:
    made: list[_Worker] = []

    def make() -> _Worker:
        made.append(_Worker())
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def call(listener: socket.socket) -> Iterator[Callable[[], socket.socket]]:
    """Connect as a client does."""
    made: list[socket.socket] = []

    def make() -> socket.socket:
        made.append(socket.create_connection(listener.getsockname(), timeout=_TIMEOUT_S))
        return made[-1]

    yield make
    for each in made:
        each.close()


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(_TIMEOUT_S):
        while not holds():  # noqa: ASYNC110 - the other end of a socket reports nothing to this loop
            await asyncio.sleep(0)


def _accepting(listener: socket.socket, workers: Callable[[], list[HttpWorker]]) -> Acceptor:
    return Acceptor(listener, lambda connection: dispatch(connection, workers()))


def _is_of(connection: socket.socket, client: socket.socket) -> bool:
    return bool(connection.getpeername() == client.getsockname())


async def test_the_worker_with_the_fewest_connections_gets_the_next(
    listener: socket.socket, worker: Callable[[], _Worker], call: Callable[[], socket.socket]
) -> None:
    busy, idle = worker(), worker()
    busy.status.open_connections, idle.status.open_connections = 3, 1
    acceptor = _accepting(listener, lambda: [busy.known, idle.known])
    acceptor.open()
    for _ in range(4):
        call()
    await _until(lambda: len(busy.known.unacknowledged) + len(idle.known.unacknowledged) == 4)
    await acceptor.close(0)

    assert (busy.known.open_connections, idle.known.open_connections) == (4, 4)


async def test_a_worker_whose_event_loop_does_not_run_gets_no_connection_while_another_runs(
    listener: socket.socket,
    worker: Callable[[], _Worker],
    call: Callable[[], socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.workers.http_worker._SLOW_S", 1000)
    hanging, busy = worker(), worker()
    hanging.known.ticked_at -= 2000
    busy.status.open_connections = 100
    acceptor = _accepting(listener, lambda: [hanging.known, busy.known])
    acceptor.open()
    call()
    await _until(lambda: len(busy.known.unacknowledged) == 1)
    busy.known.ticked_at -= 2000
    # Now neither runs.
    call()
    await _until(lambda: len(hanging.known.unacknowledged) == 1)
    await acceptor.close(0)


async def test_a_worker_gets_no_connection_before_it_serves(worker: Callable[[], _Worker]) -> None:
    starting, busy = worker(), worker()
    starting.status.ticks = 0
    busy.status.open_connections = 100
    busy.known.ticked_at -= 2000

    connection, client = socket.socketpair()
    with client:
        assert not dispatch(connection, [starting.known])
        assert dispatch(connection, [starting.known, busy.known])
        assert list(busy.known.unacknowledged) == [connection]


async def test_a_connection_that_a_worker_has_taken_is_closed_in_the_engine_process(
    listener: socket.socket, worker: Callable[[], _Worker], call: Callable[[], socket.socket]
) -> None:
    only = worker()
    acceptor = _accepting(listener, lambda: [only.known])
    acceptor.open()
    client = call()
    await _until(lambda: only.known.open_connections == 1)
    [taken] = only.take(1)
    taken.close()

    assert not only.known.unacknowledged
    # The client sees the end, so no other process has it open.
    assert client.recv(1) == b""
    await acceptor.close(0)


async def test_connections_that_a_worker_had_left_when_it_ended_go_to_others(
    listener: socket.socket, worker: Callable[[], _Worker], call: Callable[[], socket.socket]
) -> None:
    ending, other = worker(), worker()
    workers = [ending.known]
    acceptor = _accepting(listener, lambda: workers)
    acceptor.open()
    clients = [call() for _ in range(3)]
    await _until(lambda: ending.known.open_connections == 3)
    [taken] = ending.take(1)
    workers[:] = [other.known]
    ending.end.close()
    acceptor.requeue(ending.known.unacknowledged)
    received = other.take(2)

    assert _is_of(taken, clients[0])
    assert [_is_of(*pair) for pair in zip(received, clients[1:], strict=True)] == [True, True]
    received[0].close()
    assert clients[1].recv(1) == b""
    taken.close()
    received[1].close()
    await acceptor.close(0)


async def test_a_connection_without_a_worker_waits_for_one(
    listener: socket.socket, worker: Callable[[], _Worker], call: Callable[[], socket.socket]
) -> None:
    workers: list[HttpWorker] = []
    tried = asyncio.Event()

    def current_workers() -> list[HttpWorker]:
        tried.set()
        return workers

    acceptor = _accepting(listener, current_workers)
    acceptor.open()
    call()
    await asyncio.wait_for(tried.wait(), _TIMEOUT_S)
    late = worker()
    workers.append(late.known)
    # Without another connection to trigger it.
    await _until(lambda: late.known.open_connections == 1)
    await acceptor.close(0)


async def test_many_connections_that_come_back_all_go_to_another(
    listener: socket.socket, worker: Callable[[], _Worker], call: Callable[[], socket.socket]
) -> None:
    ending, other = worker(), worker()
    workers = [ending.known]
    acceptor = _accepting(listener, lambda: workers)
    acceptor.open()
    for _ in range(100):
        call()
    await _until(lambda: ending.known.open_connections == 100)
    workers[:] = [other.known]
    acceptor.requeue(ending.known.unacknowledged)
    await _until(lambda: other.known.open_connections == 100)
    await acceptor.close(0)


async def test_a_connection_that_comes_back_while_the_acceptor_closes_goes_to_another(
    listener: socket.socket, worker: Callable[[], _Worker], call: Callable[[], socket.socket]
) -> None:
    ending, other = worker(), worker()
    workers = [ending.known]
    acceptor = _accepting(listener, lambda: workers)
    acceptor.open()
    call()
    await _until(lambda: ending.known.open_connections == 1)
    closing = asyncio.create_task(acceptor.close(perf_counter() + _TIMEOUT_S))
    await asyncio.sleep(0)
    workers[:] = [other.known]
    acceptor.requeue(ending.known.unacknowledged)
    await closing

    assert other.known.open_connections == 1


async def test_a_connection_that_comes_back_after_the_acceptor_closed_is_closed(
    listener: socket.socket, worker: Callable[[], _Worker], call: Callable[[], socket.socket]
) -> None:
    ending = worker()
    acceptor = _accepting(listener, lambda: [ending.known])
    acceptor.open()
    client = call()
    await _until(lambda: ending.known.open_connections == 1)
    await acceptor.close(0)
    ending.end.close()
    acceptor.requeue(ending.known.unacknowledged)

    assert client.recv(1) == b""


async def test_a_connection_that_a_worker_has_no_file_descriptor_for_goes_to_another(
    listener: socket.socket, worker: Callable[[], _Worker], call: Callable[[], socket.socket]
) -> None:
    full, other = worker(), worker()
    other.status.open_connections = 100
    acceptor = _accepting(listener, lambda: [full.known, other.known])
    acceptor.open()
    client = call()
    await _until(lambda: full.known.open_connections == 1)
    full.status.received += 1
    full.end.send(NO_FILES)
    refused = full.known.read_replies()
    assert refused
    acceptor.requeue(refused)
    [received] = other.take(1)

    assert _is_of(received, client)
    assert full.known.open_connections == 0
    received.close()
    await acceptor.close(0)
