"""A real `gradless serve`, its process and what it takes of the machine."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

from observe.processes import Running, gradless_process
from reliability.wire import Place

DEFAULT_MODEL = "efficientnet_lite0"
NULL_MODEL = "null"
# GRADLESS_QUEUE_CAPACITY and GRADLESS_DRAIN_TIMEOUT_S as they are by default.
QUEUE_CAPACITY = 256
DRAIN_TIMEOUT_S = 30

_MEGABYTE = 1e6
_LOOKING_S = 0.05
_WARNINGS = {"warning", "error", "critical"}


class Vitals(NamedTuple):
    """Of a process at one moment."""

    rss_bytes: int
    descriptors: int
    threads: int


class Served:
    """A running server."""

    def __init__(self, running: Running) -> None:
        url = urlsplit(running.address)
        self.place = Place(url.hostname or "127.0.0.1", url.port or 80)
        self.process = running.process
        self._log = running.log
        self._looked_at = psutil.Process(running.process.pid)

    def vitals(self) -> Vitals:
        """Now. Raises psutil.NoSuchProcess when it has ended."""
        with self._looked_at.oneshot():
            return Vitals(self._looked_at.memory_info().rss, self._looked_at.num_fds(), self._looked_at.num_threads())

    def cpu_seconds(self) -> float:
        """Of all its threads so far."""
        times = self._looked_at.cpu_times()
        return float(times.user + times.system)

    def workers(self) -> list[psutil.Process]:
        """The HTTP processes, where there are several: forks of a child of the one that was started."""
        return [worker for child in self._looked_at.children() for worker in child.children()]

    def fork_server(self) -> psutil.Process | None:
        """The process that HTTP processes are forks of, the only child of the one that was started. None while there is
        none."""
        return next(iter(living(self._looked_at.children())), None)

    def processes(self) -> list[psutil.Process]:
        """The process that was started and all its descendants."""
        return [self._looked_at, *self._looked_at.children(recursive=True)]

    def warnings(self) -> list[str]:
        """The events of its log so far that are warnings or worse."""
        lines = [json.loads(line) for line in self._log.read_text("utf-8").splitlines() if line.startswith("{")]
        return [line["event"] for line in lines if line["level"] in _WARNINGS]

    def alive(self) -> bool:
        """Whether the process that was started still runs."""
        return self.process.poll() is None

    def stop(self) -> int:
        """SIGTERM; the status that it ends with. Raises subprocess.TimeoutExpired."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(2 * DRAIN_TIMEOUT_S)

    async def vitals_at_rest(self, timeout_s: float = 60.0) -> Vitals:
        """Once no caller is connected any more. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            # Another process's connections have no event to wait for.
            while any(  # noqa: ASYNC110
                to.status == psutil.CONN_ESTABLISHED for to in self._looked_at.net_connections("tcp")
            ):
                await asyncio.sleep(_LOOKING_S)
        return self.vitals()


@contextmanager
def serving(model: str, **settings: str) -> Iterator[Served]:
    """A server of `model`, several separated by commas, with default settings but these GRADLESS_* variables. Ends with
    the block. Raises observe.processes.NotStartedError."""
    with (
        tempfile.TemporaryDirectory(prefix="gradless-reliability-") as folder,
        gradless_process(Path(folder), {"GRADLESS_MODELS": model, **settings}) as running,
    ):
        yield Served(running)


def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended. One that has and that nobody has reaped is not among them."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def growth_mb(before: Vitals, after: Vitals) -> float:
    """Of the resident size."""
    return (after.rss_bytes - before.rss_bytes) / _MEGABYTE
