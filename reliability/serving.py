"""A real `gradless serve`, its processes and their use of resources."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

from observe.processes import Running, gradless_process
from reliability.wire import Address

DEFAULT_MODEL = "efficientnet_lite0"
NULL_MODEL = "null"
# GRADLESS_QUEUE_CAPACITY and GRADLESS_DRAIN_TIMEOUT_S as they are by default.
QUEUE_CAPACITY = 256
DRAIN_TIMEOUT_S = 30
# GRADLESS_HTTP_WORKERS of scenarios that run without and with them.
WORKERS = ("0", "2")

_MEGABYTE = 1e6
_POLL_S = 0.05
_GRPC = "listening for gRPC"
_WARNINGS = {"warning", "error", "critical"}


class Vitals(NamedTuple):
    """Resources of a process at one moment."""

    rss_bytes: int
    descriptors: int
    threads: int


class Served:
    """A running server."""

    def __init__(self, running: Running) -> None:
        url = urlsplit(running.address)
        self.address = Address(url.hostname or "127.0.0.1", url.port or 80)
        self.process = running.process
        self._log = running.log
        self._psutil_process = psutil.Process(running.process.pid)

    def vitals(self) -> Vitals:
        """Return the resources of the main process. Raises psutil.NoSuchProcess if it has ended."""
        with self._psutil_process.oneshot():
            return Vitals(
                self._psutil_process.memory_info().rss,
                self._psutil_process.num_fds(),
                self._psutil_process.num_threads(),
            )

    def rss_mb(self) -> dict[int, float]:
        """Return the resident memory of each process by its id, in MB."""
        return {process.pid: process.memory_info().rss / _MEGABYTE for process in self.processes()}

    def peak_mb(self) -> dict[int, float]:
        """Return the most resident memory that each process has had, by its id, in MB. Linux only."""
        files = {process.pid: Path(f"/proc/{process.pid}/status").read_text() for process in self.processes()}
        return {pid: int(text.partition("VmHWM:")[2].split()[0]) * 1024 / _MEGABYTE for pid, text in files.items()}

    def cpu_seconds(self) -> float:
        """Return the CPU time of all threads of the main process so far."""
        times = self._psutil_process.cpu_times()
        return float(times.user + times.system)

    def workers(self) -> list[psutil.Process]:
        """Return the HTTP workers, which are children of the fork server."""
        return [worker for child in self._psutil_process.children() for worker in child.children()]

    def fork_server(self) -> psutil.Process | None:
        """Return the process that forks the HTTP workers, the main process's only child, or None."""
        return next(iter(living(self._psutil_process.children())), None)

    def processes(self) -> list[psutil.Process]:
        """Return the main process and all its descendants."""
        return [self._psutil_process, *self._psutil_process.children(recursive=True)]

    def grpc_address(self) -> Address:
        """Wait for the address of its gRPC server, which needs GRADLESS_GRPC_PORT, and return it. Raises StopIteration
        if it has ended without one."""
        while not (told := [line["address"] for line in self._logged() if line["event"] == _GRPC]) and self.alive():
            time.sleep(_POLL_S)
        host, _, port = next(iter(told)).rpartition(":")
        return Address(host, int(port))

    def warnings(self) -> list[str]:
        """Return the events logged so far at level warning or above."""
        return [line["event"] for line in self._logged() if line["level"] in _WARNINGS]

    def _logged(self) -> list[dict[str, str]]:
        # The last line may be half written.
        lines = self._log.read_text("utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def alive(self) -> bool:
        """Return whether the main process still runs."""
        return self.process.poll() is None

    def stop(self) -> int:
        """Send SIGTERM and return the exit status. Raises subprocess.TimeoutExpired."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(2 * DRAIN_TIMEOUT_S)

    async def vitals_at_rest(self, timeout_s: float = 60.0) -> Vitals:
        """Return the resources once no client is connected. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            # Another process's connections have no event to wait for.
            while any(  # noqa: ASYNC110
                to.status == psutil.CONN_ESTABLISHED for to in self._psutil_process.net_connections("tcp")
            ):
                await asyncio.sleep(_POLL_S)
        return self.vitals()


@contextmanager
def serving(model: str, **settings: str) -> Iterator[Served]:
    """Run a server of `model` (or several, comma-separated) with these GRADLESS_* variables until the block ends.

    Raises observe.processes.NotStartedError.
    """
    with (
        tempfile.TemporaryDirectory(prefix="gradless-reliability-") as folder,
        gradless_process(Path(folder), {"GRADLESS_MODELS": model, **settings}) as running,
    ):
        yield Served(running)


def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Return those that have not ended; zombies have."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def growth_mb(before: Vitals, after: Vitals) -> float:
    """Return the growth of resident memory."""
    return (after.rss_bytes - before.rss_bytes) / _MEGABYTE
