"""Who is handed a caller's connection, and who if that one does not take it."""

from __future__ import annotations

import asyncio
import ctypes
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from app.server.acceptor import Acceptor
from app.workers.connection_dispatch import HttpWorker, hand
from app.workers.http_worker import NO_FILES, TAKEN

pytestmark = pytest.mark.anyio

_PATIENCE_S = 10


class _Worker:
    """A worker as its parent knows it, and its own end of the socket."""

    def __init__(self) -> None:
        handing, self.handed = socket.socketpair()
        handing.setblocking(False)
        self.handed.settimeout(_PATIENCE_S)
        self.told = (ctypes.c_uint * 2)()
        self.known = HttpWorker(cast("Any", None), handing, self.told, cast("Any", None))

    def connections(self, number: int) -> list[socket.socket]:
        """The next that it was handed. They are not taken by that."""
        taken: list[socket.socket] = []
        while len(taken) < number:
            _, descriptors, _, _ = socket.recv_fds(self.handed, number - len(taken), number)
            taken += [socket.socket(fileno=descriptor) for descriptor in descriptors]
        return taken

    def take(self, number: int) -> list[socket.socket]:
        taken = self.connections(number)
        self.handed.send(TAKEN * number)
        assert self.known.let_go() == []
        return taken

    def close(self) -> None:
        for end in (self.handed, self.known.handing, *self.known.not_taken):
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
    """Make a connection, as a caller does; the server's ends of those may be closed as well."""
    made: list[socket.socket] = []

    def make() -> socket.socket:
        made.append(socket.create_connection(listener.getsockname(), timeout=_PATIENCE_S))
        return made[-1]

    yield make
    for each in made:
        each.close()


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - a socket's other end, and no event of this loop's
            await asyncio.sleep(0)


def _accepting(listener: socket.socket, workers: Callable[[], list[HttpWorker]]) -> Acceptor:
    return Acceptor(listener, lambda connection: hand(connection, workers()))


def _is_of(connection: socket.socket, caller: socket.socket) -> bool:
    return bool(connection.getpeername() == caller.getsockname())


async def test_the_worker_with_the_fewest_is_handed_the_next(
    listener: socket.socket, worker: Callable[[], _Worker], call: Callable[[], socket.socket]
) -> None:
    busy, idle = worker(), worker()
    busy.told[0], idle.told[0] = 3, 1
    acceptor = _accepting(listener, lambda: [busy.known, idle.known])
    acceptor.open()
    for _ in range(4):
        call()
    await _until(lambda: len(busy.known.not_taken) + len(idle.known.not_taken) == 4)
    await acceptor.close(0)

    assert (busy.known.open_connections, idle.known.open_connections) == (4, 4)


async def test_one_that_does_not_turn_is_handed_nothing_while_another_does(
    listener: socket.socket, worker: Callable[[], _Worker], call: Callable[[], socket.socket]
) -> None:
    hanging, busy = worker(), worker()
    hanging.known.turned_at -= 2
    busy.told[0] = 100
    acceptor = _accepting(listener, lambda: [hanging.known, busy.known])
    acceptor.open()
    call()
    await _until(lambda: len(busy.known.not_taken) == 1)
    busy.known.turned_at -= 2
    # Nobody turns.
    call()
    await _until(lambda: len(hanging.known.not_taken) == 1)
    await acceptor.close(0)


async def test_what_a_worker_has_taken_is_its_own(
    listener: socket.socket, worker: Callable[[], _Worker], call: Callable[[], socket.socket]
) -> None:
    only = worker()
    acceptor = _accepting(listener, lambda: [only.known])
    acceptor.open()
    caller = call()
    await _until(lambda: only.known.open_connections == 1)
    [taken] = only.take(1)
    taken.close()

    assert not only.known.not_taken
    # Nobody else keeps it open.
    assert caller.recv(1) == b""
    await acceptor.close(0)


async def test_what_a_worker_had_not_taken_when_it_ended_others_are_handed(
    listener: socket.socket, worker: Callable[[], _Worker], call: Callable[[], socket.socket]
) -> None:
    ending, other = worker(), worker()
    workers = [ending.known]
    acceptor = _accepting(listener, lambda: workers)
    acceptor.open()
    callers = [call() for _ in range(3)]
    await _until(lambda: ending.known.open_connections == 3)
    [taken] = ending.take(1)
    workers[:] = [other.known]
    ending.handed.close()
    acceptor.requeue(ending.known.not_taken)
    handed = other.take(2)

    assert _is_of(taken, callers[0])
    assert [_is_of(*pair) for pair in zip(handed, callers[1:], strict=True)] == [True, True]
    handed[0].close()
    assert callers[1].recv(1) == b""
    taken.close()
    handed[1].close()
    await acceptor.close(0)


async def test_a_connection_that_nobody_can_be_handed_waits_for_the_first_who_can(
    listener: socket.socket, worker: Callable[[], _Worker], call: Callable[[], socket.socket]
) -> None:
    workers: list[HttpWorker] = []
    asked = asyncio.Event()

    def those() -> list[HttpWorker]:
        asked.set()
        return workers

    acceptor = _accepting(listener, those)
    acceptor.open()
    call()
    await asyncio.wait_for(asked.wait(), _PATIENCE_S)
    late = worker()
    workers.append(late.known)
    # Although nobody else calls.
    await _until(lambda: late.known.open_connections == 1)
    await acceptor.close(0)


async def test_all_of_many_that_come_back_are_handed_on(
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
    acceptor.requeue(ending.known.not_taken)
    await _until(lambda: other.known.open_connections == 100)
    await acceptor.close(0)


async def test_what_comes_back_when_nobody_listens_any_more_is_closed(
    listener: socket.socket, worker: Callable[[], _Worker], call: Callable[[], socket.socket]
) -> None:
    ending = worker()
    acceptor = _accepting(listener, lambda: [ending.known])
    acceptor.open()
    caller = call()
    await _until(lambda: ending.known.open_connections == 1)
    await acceptor.close(0)
    ending.handed.close()
    acceptor.requeue(ending.known.not_taken)

    assert caller.recv(1) == b""


async def test_what_a_worker_has_no_file_descriptors_for_others_are_handed(
    listener: socket.socket, worker: Callable[[], _Worker], call: Callable[[], socket.socket]
) -> None:
    full, other = worker(), worker()
    other.told[0] = 100
    acceptor = _accepting(listener, lambda: [full.known, other.known])
    acceptor.open()
    client = call()
    await _until(lambda: full.known.open_connections == 1)
    full.handed.send(NO_FILES)
    refused = full.known.let_go()
    assert refused
    acceptor.requeue(refused)
    [handed] = other.take(1)

    assert _is_of(handed, client)
    assert full.known.open_connections == 0
    handed.close()
    await acceptor.close(0)
