"""The acceptor stops accepting connections without resetting one that has been made."""

from __future__ import annotations

import errno
import logging
import socket
import sys
from collections.abc import Iterator
from time import perf_counter

import pytest

from app.server.acceptor import Acceptor, ignore_new_handshakes

pytestmark = pytest.mark.anyio

_PATIENCE_S = 10


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener


async def test_connections_in_the_kernels_queue_are_accepted_before_the_listener_closes(
    listener: socket.socket,
) -> None:
    taken: list[socket.socket] = []
    acceptor = Acceptor(listener, lambda connection: taken.append(connection) or True)  # type: ignore[func-returns-value]
    acceptor.open()
    # The event loop does not run in between.
    clients = [socket.create_connection(listener.getsockname(), timeout=_PATIENCE_S) for _ in range(100)]
    await acceptor.close(perf_counter() + _PATIENCE_S)

    assert len(taken) == len(clients)
    for connection in (*taken, *clients):
        connection.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a socket filter of Linux")
async def test_a_listener_that_is_about_to_close_makes_no_new_connection_and_keeps_the_others(
    listener: socket.socket,
) -> None:
    listener.listen()
    with socket.create_connection(listener.getsockname(), timeout=_PATIENCE_S) as early:
        ignore_new_handshakes(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), timeout=0.2)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getpeername() == early.getsockname()
            early.sendall(b"request")
            assert accepted.recv(7) == b"request"


async def test_running_out_of_file_descriptors_is_logged_once_a_minute(
    listener: socket.socket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("app.server.acceptor.perf_counter", lambda: now[0])
    acceptor = Acceptor(listener, lambda _: True)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            acceptor.out_of_files.log("no connection can be accepted: %s", errno.errorcode[errno.EMFILE])
        assert caplog.messages == ["no connection can be accepted: EMFILE"]
        now[0] = 61
        acceptor.out_of_files.log("no connection can be accepted: %s", errno.errorcode[errno.EMFILE])

    assert caplog.messages[1:] == ["no connection can be accepted: EMFILE (2 times more since the last line)"]
