"""HTTP workers and an engine process are one service for clients, also when one of the processes is killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx2
import psutil
import pytest

_WORKERS = 2
_TIMEOUT_S = 60
_FAULTY = [sys.executable, str(Path(__file__).parent / "faulty_workers.py")]


def _until(holds: Callable[[], bool]) -> None:
    deadline = monotonic() + _TIMEOUT_S
    while not holds():
        assert monotonic() < deadline
        sleep(0.02)


def _workers(service: Any) -> list[psutil.Process]:
    """Return the HTTP workers. Their parent is the fork server, a child of the engine process."""
    children = psutil.Process(service.process.pid).children()
    return [worker for child in children for worker in child.children()]


def _connections(worker: psutil.Process) -> int:
    return sum(connection.status == "ESTABLISHED" for connection in worker.net_connections("tcp"))


def _until_all_are_closed(workers: list[psutil.Process]) -> None:
    """Clients have closed their connections; wait until workers have too."""
    _until(lambda: not any(worker.net_connections("tcp") for worker in workers))


@contextlib.contextmanager
def _one_connection_each(service: Any) -> Iterator[list[psutil.Process]]:
    """Hold one connection to each worker, and yield the workers.

    They get one each once all serve and the engine process knows of connections that were closed before. It also knows
    of these: a worker reports what it has when it takes a connection, so before it answers."""
    workers = _workers(service)
    with contextlib.ExitStack() as opened:

        def reached() -> bool:
            opened.close()
            _until_all_are_closed(workers)
            for _ in workers:
                connection = opened.enter_context(service.connect())
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert connection.recv(12) == b"HTTP/1.1 200"
            return all(_connections(worker) == 1 for worker in workers)

        _until(reached)
        yield workers


def _until_all_serve(service: Any) -> None:
    """A worker that the test before has replaced gets connections only once it serves."""
    with _one_connection_each(service) as workers:
        pass
    # The engine process may count these still. That is one for each worker, which matters to no share of several.
    _until_all_are_closed(workers)


class _Clients:
    """Clients that send requests until `end`, each on connections of its own. A lost connection is replaced."""

    def __init__(self, address: str, image: bytes, clients: int) -> None:
        self._address, self._image = address, image
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        self.answered = 0
        self._running = [self._pool.submit(self._run) for _ in range(clients)]

    def _run(self) -> list[int | str]:
        ends: list[int | str] = []
        with httpx2.Client(base_url=self._address) as client:
            while not self._over.is_set():
                try:
                    ends.append(client.post("/v1/classify", content=self._image).status_code)
                except httpx2.TransportError as error:
                    ends.append(type(error).__name__)
                self.answered += 1
        return ends

    def end(self) -> list[list[int | str]]:
        """Return the statuses of each client, with the error where a connection broke."""
        self._over.set()
        with self._pool:
            return [client.result() for client in self._running]


def test_connections_are_spread_over_the_workers(worker_server: Any) -> None:
    with _one_connection_each(worker_server) as workers, contextlib.ExitStack() as opened:
        for _ in range(4 * _WORKERS):
            opened.enter_context(worker_server.connect())
        _until(lambda: sum(map(_connections, workers)) == 5 * _WORKERS)
        assert [_connections(worker) for worker in workers] == [5] * _WORKERS


def test_every_worker_serves_the_metrics_of_the_whole_service(
    worker_server: Any, clock_jpeg: bytes, metric_sum: Callable[..., float]
) -> None:
    def counted() -> list[float]:
        exposition = httpx2.get(f"{worker_server.address}/metrics").text
        return [
            metric_sum(exposition, "gradless_images_total", outcome="ok"),
            metric_sum(exposition, "gradless_batch_size_sum"),
        ]

    before = counted()
    for _ in range(3 * _WORKERS):
        # Each has a connection of its own, so all workers get some.
        httpx2.post(f"{worker_server.address}/v1/features", content=clock_jpeg).raise_for_status()

    # A batch is counted after its requests are answered.
    _until(lambda: counted() == [count + 3 * _WORKERS for count in before])
    for _ in range(_WORKERS):
        exposition = httpx2.get(f"{worker_server.address}/metrics").text
        assert metric_sum(exposition, "gradless_in_flight_images") == 0
        assert metric_sum(exposition, "gradless_model_ready") == 1
        assert metric_sum(exposition, "gradless_model_loads_total", outcome="ok") == 1
        resident = sum(
            process.memory_info().rss
            for process in [psutil.Process(worker_server.process.pid), *_workers(worker_server)]
        )
        assert metric_sum(exposition, "process_resident_memory_bytes") == pytest.approx(resident, rel=0.1)


def test_a_killed_worker_loses_only_its_own_requests_and_is_replaced(
    worker_server: Any, clock_jpeg: bytes, metric_sum: Callable[..., float]
) -> None:
    clients = _Clients(worker_server.address, clock_jpeg, 8)
    _until(lambda: clients.answered > 100)
    killed, left = _workers(worker_server)
    killed.suspend()
    # Then each client that is connected to it waits for an answer.
    suspended_at = clients.answered
    _until(lambda: clients.answered > suspended_at + 100)
    killed.kill()
    worker_server.wait_for_line("starting a replacement")
    _until(lambda: len(_workers(worker_server)) == _WORKERS)
    before = clients.answered
    _until(lambda: clients.answered > before + 200)
    ends = clients.end()

    lost = [sum(end != 200 for end in each) for each in ends]
    # Some clients were connected to the killed worker. One that reconnected at once may have reached it again.
    assert 0 < sum(times > 0 for times in lost) < len(lost)
    assert max(lost) <= 2
    assert all(each[-1] == 200 for each in ends)
    assert left in _workers(worker_server)
    exposition = httpx2.get(f"{worker_server.address}/metrics").text
    assert metric_sum(exposition, "gradless_worker_replacements_total", reason="ended") == 1
    _until(lambda: httpx2.get(f"{worker_server.address}/readyz").status_code == 200)


def test_connections_that_a_killed_worker_had_not_taken_are_answered_by_another(
    worker_server: Any, clock_jpeg: bytes
) -> None:
    _until_all_serve(worker_server)
    killed, left = _workers(worker_server)
    killed.suspend()
    connections = [worker_server.connect() for _ in range(4 * _WORKERS)]
    accepting = psutil.Process(worker_server.process.pid)
    # The engine process keeps each connection until a worker has taken it.
    _until(lambda: _connections(left) >= 1 and _connections(left) + _connections(accepting) == len(connections))
    assert _connections(accepting) > 0
    head = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(clock_jpeg)}\r\n\r\n"
    for connection in connections:
        connection.sendall(head.encode() + clock_jpeg)
    killed.kill()

    for connection in connections:
        with connection:
            assert connection.recv(12) == b"HTTP/1.1 200"
    _until(lambda: len(_workers(worker_server)) == _WORKERS)


def test_a_worker_that_cannot_apply_a_load_is_replaced_and_loads_succeed(
    worker_server: Any, clock_jpeg: bytes, metric_sum: Callable[..., float]
) -> None:
    def replaced() -> float:
        return metric_sum(httpx2.get(f"{worker_server.address}/metrics").text, "gradless_worker_replacements_total")

    before = replaced()
    _until_all_serve(worker_server)
    unable, other = _workers(worker_server)
    with contextlib.ExitStack() as open_until_here:
        # Below its limit the worker can take no connection either, so connect before.
        connections = [
            open_until_here.enter_context(
                contextlib.closing(HTTPConnection(worker_server.host, worker_server.port, 60))
            )
            for _ in range(2 * _WORKERS)
        ]
        for connection in connections:
            connection.connect()
        # How they are spread may follow from connections that were closed just before.
        _until(lambda: _connections(other) >= 1 and _connections(unable) + _connections(other) == len(connections))
        ports = {connected.raddr.port for connected in other.net_connections("tcp")}
        loader = next(one for one in connections if one.sock.getsockname()[1] in ports)
        # The slots of a new version come as a file descriptor, and it may open no more files.
        _, most = unable.rlimit(psutil.RLIMIT_NOFILE)
        unable.rlimit(psutil.RLIMIT_NOFILE, (1, most))
        loader.request("POST", "/v1/models/null")
        assert loader.getresponse().status == 200
    worker_server.wait_for_line("a message from another process cannot be processed.*did not arrive")
    worker_server.wait_for_line("starting a replacement")
    _until(lambda: len(_workers(worker_server)) == _WORKERS)

    assert other in _workers(worker_server)
    assert unable not in _workers(worker_server)
    assert replaced() == before + 1
    assert httpx2.post(f"{worker_server.address}/v1/models/null", timeout=60).status_code == 200
    for _ in range(2 * _WORKERS):
        httpx2.post(f"{worker_server.address}/v1/classify", content=clock_jpeg).raise_for_status()
    _until(lambda: httpx2.get(f"{worker_server.address}/readyz").status_code == 200)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [("failing", "ended with status 3; starting a replacement"), ("hanging", "is unresponsive: no tick for 3 s")],
)
def test_workers_that_fail_to_start_end_the_service(fault: str, reason: str) -> None:
    environment = os.environ | {"GRADLESS_MODELS": "null", "GRADLESS_PORT": "0", "GRADLESS_LOG_FORMAT": "json"}
    command = [*_FAULTY, fault]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)

    assert ended.returncode == 1
    assert reason in ended.stderr
    assert re.search("ended: 4 HTTP workers in a row ended before they served", ended.stderr)
    assert '"serving"' not in ended.stderr


@pytest.mark.slow
def test_an_unresponsive_worker_is_replaced(
    start_command: Callable[..., Any], clock_jpeg: bytes, metric_sum: Callable[..., float]
) -> None:
    service = start_command([*_FAULTY, "unresponsive"], GRADLESS_MODELS="null")
    stopped, _ = _workers(service)
    stopped.suspend()
    service.wait_for_line("is unresponsive: no tick for 3 s")
    service.wait_for_line("starting a replacement")
    _until(lambda: len(_workers(service)) == _WORKERS)

    assert stopped not in _workers(service)
    exposition = httpx2.get(f"{service.address}/metrics").text
    assert metric_sum(exposition, "gradless_worker_replacements_total", reason="unresponsive") == 1
    httpx2.post(f"{service.address}/v1/classify", content=clock_jpeg).raise_for_status()


def test_a_worker_that_gets_sigterm_answers_its_requests_and_gets_no_more(
    worker_server: Any, clock_jpeg: bytes
) -> None:
    clients = _Clients(worker_server.address, clock_jpeg, 8)
    _until(lambda: clients.answered > 100)
    terminated, _ = _workers(worker_server)
    terminated.terminate()
    worker_server.wait_for_line("ended with status 0; starting a replacement")
    before = clients.answered
    _until(lambda: clients.answered > before + 200)

    # It answers 503 on its connections until it has closed them.
    assert {end for each in clients.end() for end in each} <= {200, 503}


# Last of the tests that share the service, because it stops it.
def test_requests_accepted_under_load_are_answered_before_the_service_ends(
    worker_server: Any, clock_jpeg: bytes
) -> None:
    processes = [psutil.Process(worker_server.process.pid), *_workers(worker_server)]
    clients = _Clients(worker_server.address, clock_jpeg, 8)
    _until(lambda: clients.answered > 100)
    worker_server.process.send_signal(signal.SIGTERM)

    assert worker_server.exit_status() == 0
    for each in clients.end():
        # A 503 is an answer, and later connections are refused; but no answer is missing or cut off.
        wrong = [end for end in each if end not in {200, 503, "ConnectError"}]
        assert wrong == []
    assert not any(process.is_running() for process in processes)
