"""Faults of the processes themselves: the engine process or the fork server fails, or all are stopped and continued."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from typing import Any

import httpx2
import psutil
import pytest

_TIMEOUT_S = 60
# Less than the default of the drain timeout.
_SOON_S = 25
_WORKERS = 2


def _until(holds: Callable[[], bool], timeout_s: float = _TIMEOUT_S) -> None:
    deadline = monotonic() + timeout_s
    while not holds():
        assert monotonic() < deadline
        sleep(0.01)


def _descendants(service: Any) -> list[psutil.Process]:
    return [*psutil.Process(service.process.pid).children(recursive=True)]


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    alive = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def _fork_server(service: Any) -> psutil.Process:
    [child] = psutil.Process(service.process.pid).children()
    return child


def _workers(service: Any) -> list[psutil.Process]:
    # Forked children have its command line. What PyTorch runs while it is imported has another.
    fork_server = _fork_server(service)
    found = []
    for child in fork_server.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.cmdline() == fork_server.cmdline():
                found.append(child)
    return found


@contextlib.contextmanager
def _requests(service: Any, path: str, image: bytes | None) -> Iterator[None]:
    """Send requests all the time, each on a connection of its own, and ignore their answers."""
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            with contextlib.suppress(httpx2.TransportError):
                if image is None:
                    httpx2.get(f"{service.address}{path}", timeout=5)
                else:
                    httpx2.post(f"{service.address}{path}", content=image, timeout=5)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


_FAILING_WATCH = """
import asyncio
async def watch(self):
    while not triggered.is_set():
        await asyncio.sleep(0.1)
    raise RuntimeError("forced")
worker_pool.WorkerPool.watch = watch
"""


@pytest.mark.parametrize(
    ("where", "patch"),
    [
        ("a task", "from models.workers.engine_server import EngineServer; fail(EngineServer, '_remove_versions')"),
        ("the watch over workers", _FAILING_WATCH),
        ("a callback", "fail(worker_pool.WorkerPool, '_read_replies')"),
        (
            "a batch's report",
            "from models.workers.image_transfer import ImageReceiver; fail(ImageReceiver, 'batch_over')",
        ),
        ("a thread", "from models.serving.supervisor import Supervisor; fail(Supervisor, '_check')"),
    ],
)
def test_an_uncaught_exception_in_the_engine_process_ends_the_service(
    start_patched: Callable[..., Any], clock_jpeg: bytes, where: str, patch: str
) -> None:
    service = start_patched(_WORKERS, patch)
    processes = _descendants(service)
    with _requests(service, "/v1/classify", clock_jpeg), _requests(service, "/metrics", None):
        service.process.send_signal(signal.SIGUSR1)
        failed_at = monotonic()
        assert service.exit_status() == 1, where
        assert monotonic() - failed_at < _SOON_S

    _until(lambda: not _alive(processes))
    with pytest.raises(OSError, match="refused"):
        service.connect()
    service.end_of_output()
    assert "forced" in "".join(service.log)


def test_an_exception_while_the_engine_process_ends_leaves_no_process(start_patched: Callable[..., Any]) -> None:
    service = start_patched(_WORKERS, "fail(worker_pool.Acceptor, 'close')")
    processes = _descendants(service)
    service.process.send_signal(signal.SIGUSR1)
    service.process.terminate()

    assert service.exit_status() == 1
    _until(lambda: not _alive(processes))


def test_an_engine_process_that_hangs_while_ending_is_killed(start_patched: Callable[..., Any]) -> None:
    hanging = (
        "from models.workers.engine_server import EngineServer; EngineServer.close = lambda *_: asyncio.sleep(1e6)"
    )
    service = start_patched(
        _WORKERS,
        f"import asyncio; engine_process.FORCED_AFTER_DRAIN_S = 1; {hanging}",
        GRADLESS_DRAIN_TIMEOUT_S="1",
    )
    processes = _descendants(service)
    service.process.terminate()

    assert service.exit_status() == 1
    _until(lambda: not _alive(processes))


def test_when_the_engine_process_is_killed_no_worker_waits_for_a_body_that_is_half_sent(
    start_patched: Callable[..., Any],
) -> None:
    service = start_patched(_WORKERS, GRADLESS_READ_TIMEOUT_S="300")
    processes = _descendants(service)
    with service.connect() as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf")
        # A request on another connection is answered, so a worker has taken the first.
        httpx2.get(f"{service.address}/readyz").raise_for_status()
        service.process.kill()
        # Long before the time limit of a body.
        _until(lambda: not _alive(processes))


def test_when_the_fork_server_is_killed_also_while_it_starts_workers_serve_on_and_another_forks_replacements(
    start_patched: Callable[..., Any], clock_jpeg: bytes
) -> None:
    service = start_patched(_WORKERS)
    workers = _fork_server(service).children()
    for _ in range(2):
        # The second time it is importing, and has forked nothing yet.
        _fork_server(service).kill()
        service.wait_for_line("starting another")
        # The line comes before the process.
        _until(lambda: len(psutil.Process(service.process.pid).children()) == 1)

    assert _alive(workers) == workers
    for _ in range(2 * _WORKERS):
        httpx2.post(f"{service.address}/v1/classify", content=clock_jpeg).raise_for_status()
    # Its fork server is dead, so its exit status is unknown.
    workers[0].kill()
    service.wait_for_line("starting a replacement")
    # The new fork server imports PyTorch before it forks.
    _until(lambda: len(_workers(service)) == 1, 180)
    # The new fork server has forked this one.
    _workers(service)[0].kill()
    service.wait_for_line("status -9; starting a replacement")
    _until(lambda: len(_workers(service)) == 1)
    httpx2.post(f"{service.address}/v1/classify", content=clock_jpeg).raise_for_status()
    processes = [*workers, *_descendants(service)]
    service.process.terminate()

    assert service.exit_status() == 0
    _until(lambda: not _alive(processes))


def test_a_service_that_was_stopped_and_continued_keeps_its_workers(
    start_patched: Callable[..., Any], clock_jpeg: bytes
) -> None:
    service = start_patched(_WORKERS, "worker_pool._UNRESPONSIVE_S = 2.5; worker_pool._LATE_S = 0.5")
    engine = psutil.Process(service.process.pid)
    workers = _workers(service)
    stopped = [engine, *workers]
    for process in stopped:
        os.kill(process.pid, signal.SIGSTOP)
    sleep(3.5)
    # The engine process first, so that it checks the workers while their event loops stand still.
    os.kill(engine.pid, signal.SIGCONT)
    sleep(0.5)
    for worker in workers:
        os.kill(worker.pid, signal.SIGCONT)
    for _ in range(2 * _WORKERS):
        httpx2.post(f"{service.address}/v1/classify", content=clock_jpeg).raise_for_status()
    # Longer than the limit for an unresponsive worker.
    sleep(3.5)

    assert _workers(service) == workers
    # A worker that is stopped alone is still replaced.
    os.kill(workers[0].pid, signal.SIGSTOP)
    service.wait_for_line("is unresponsive: no tick for 2 s")
    service.wait_for_line("starting a replacement")


def test_a_process_that_was_stopped_in_a_forward_and_continued_goes_on_with_it(
    start_holding: Callable[..., Any], clock_jpeg: bytes
) -> None:
    service = start_holding(GRADLESS_FORWARD_TIMEOUT_S="3")
    service.process.send_signal(signal.SIGUSR1)
    with ThreadPoolExecutor(1) as clients:
        request = clients.submit(httpx2.post, f"{service.address}/v1/classify", content=clock_jpeg, timeout=60)
        service.wait_for_line("holds")
        service.process.send_signal(signal.SIGSTOP)
        # Longer than a check of the supervisor may be late.
        sleep(3.5)
        service.process.send_signal(signal.SIGCONT)
        # The supervisor checks several times.
        sleep(2.5)
        service.process.send_signal(signal.SIGUSR2)

        assert request.result().status_code == 200


def test_no_counter_falls_when_a_worker_is_killed(start_patched: Callable[..., Any], clock_jpeg: bytes) -> None:
    service = start_patched(_WORKERS, GRADLESS_METRICS_MAX_AGE_S="0")
    # Two connections are on two workers.
    with httpx2.Client(base_url=service.address) as client, httpx2.Client(base_url=service.address) as other:
        for connection in (client, other):
            for _ in range(5):
                connection.post("/v1/classify", content=clock_jpeg).raise_for_status()
        before = _counters(other.get("/metrics").text)
        # These are counted after the last scrape.
        for connection in (client, other):
            for _ in range(5):
                connection.post("/v1/classify", content=clock_jpeg).raise_for_status()
    workers = _workers(service)
    for worker in workers:
        worker.kill()
        service.wait_for_line("starting a replacement")
    _until(lambda: not _alive(workers))
    after = _counters(httpx2.get(f"{service.address}/metrics").text)

    assert {name for name, value in before.items() if after.get(name, 0) < value} == set()
    answered = 'gradless_images_total{model="null",outcome="ok",task="classify"}'
    assert (before[answered], after[answered]) == (10, 20)


def _counters(exposition: str) -> dict[str, float]:
    """Return counters and histograms by name and labels."""
    samples = [line.rpartition(" ") for line in exposition.splitlines() if not line.startswith("#")]
    kinds = ("_total", "_count", "_sum", "_bucket")
    return {name: float(value) for name, _, value in samples if name.partition("{")[0].endswith(kinds)}
