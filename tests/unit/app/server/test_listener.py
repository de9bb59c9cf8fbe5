"""The acceptor stops accepting connections without resetting one that has been made."""

from __future__ import annotations

import errno
import logging
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter

import pytest

from app.server.listener import Acceptor, bind, ignore_new_handshakes, log_listening, reserve_grpc_port
from app.settings import Settings
from models.interface.errors import StartError
from models.interface.extras import install_command
from models.interface.results import ModelCard

pytestmark = pytest.mark.anyio

_PATIENCE_S = 60


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
    monkeypatch.setattr("app.server.listener.perf_counter", lambda: now[0])
    acceptor = Acceptor(listener, lambda _: True)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            acceptor.out_of_files.log("no connection can be accepted: %s", errno.errorcode[errno.EMFILE])
        assert caplog.messages == ["no connection can be accepted: EMFILE"]
        now[0] = 61
        acceptor.out_of_files.log("no connection can be accepted: %s", errno.errorcode[errno.EMFILE])

    assert caplog.messages[1:] == ["no connection can be accepted: EMFILE (2 times more since the last line)"]


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


_ANY = "0.0.0.0"  # noqa: S104 - bound, never listening

needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("host", "logged_host", "reachable_host"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2", "127.0.0.2"),
        ("localhost", "127.0.0.1", "127.0.0.1"),
        (_ANY, _ANY, "127.0.0.1"),
        ("0", _ANY, "127.0.0.1"),
        pytest.param("::1", "[::1]", "[::1]", marks=needs_ipv6),
        pytest.param("::", "[::]", "[::1]", marks=needs_ipv6),
    ],
)
def test_the_log_names_the_bound_address_and_the_welcome_text_a_reachable_one(
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    host: str,
    logged_host: str,
    reachable_host: str,
) -> None:
    settings = Settings(host=host, port=0, log_format="console")
    with bind(settings) as listener, caplog.at_level(logging.INFO):
        port = listener.getsockname()[1]
        log_listening(settings, listener, ())

    assert vars(caplog.records[-1])["address"] == f"http://{logged_host}:{port}"
    assert f"http://{reachable_host}:{port}/ in a browser" in capsys.readouterr().err


_CARD = ModelCard(
    "m", "a", 1, 4, 8, 2, 2, (2,), None, "cpu", "float32", "eager", "0" * 16, False, 0.1, 1, (0.5,) * 3, (0.5,) * 3
)
_ADVICE = f"OpenVINO is about twice as fast on this processor: {install_command('openvino')}"


@pytest.mark.parametrize(
    ("processor", "backend", "card", "advice"),
    [
        ("x86_64", "auto", _CARD, [_ADVICE]),
        ("AMD64", "auto", _CARD, [_ADVICE]),
        ("aarch64", "auto", _CARD, []),
        ("x86_64", "eager", _CARD, []),
        ("x86_64", "auto", replace(_CARD, backend="openvino"), []),
        ("x86_64", "auto", replace(_CARD, backend="null"), []),
        ("x86_64", "auto", replace(_CARD, device="cuda:0"), []),
    ],
)
def test_the_line_serving_recommends_openvino_where_it_is_missing_on_x86(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    listener: socket.socket,
    processor: str,
    backend: str,
    card: ModelCard,
    advice: list[str],
) -> None:
    monkeypatch.setattr("platform.machine", lambda: processor)
    with caplog.at_level(logging.INFO):
        log_listening(Settings(backend=backend, log_format="json"), listener, [card])

    assert [value for name, value in vars(caplog.records[-1]).items() if name == "advice"] == advice


@pytest.mark.parametrize("host", ["not.there.invalid", "[::1]", "a" * 70, "192.0.2.1", "http://localhost"])
def test_the_error_for_an_unusable_host_names_the_host_and_its_setting(host: str) -> None:
    with pytest.raises(StartError, match="cannot listen on GRADLESS_HOST=") as raised:
        bind(Settings(host=host, port=0))

    assert host in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_port_of_grpc_is_reserved_without_connections_and_refused_where_another_listens() -> None:
    assert reserve_grpc_port(Settings()) is None
    reserved = reserve_grpc_port(Settings(grpc_port=0))
    assert reserved is not None
    with reserved:
        port = reserved.getsockname()[1]
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("127.0.0.1", port))
            worker.listen()
            with socket.create_connection(("127.0.0.1", port), timeout=10):
                worker.accept()[0].close()
            with pytest.raises(StartError, match=f"GRADLESS_GRPC_PORT={port}: Address already in use"):
                reserve_grpc_port(Settings(grpc_port=port))
