"""The HTTP workers of an engine process: they are started, watched and replaced, and get connections."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from time import perf_counter
from typing import TYPE_CHECKING

from app.observability.metrics import CountsReader, Metrics, create_counts
from app.server.listener import Acceptor
from app.settings import Settings
from app.workers.fork_server import ForkServer
from app.workers.http_worker import HttpWorker, create_status, dispatch

if TYPE_CHECKING:
    from models.workers.engine_server import EngineServer

_log = logging.getLogger(__name__)

# Delay before another attempt to start a worker or a fork server.
_RETRY_S = 0.5
# The service ends after so many workers in a row that ended before they served.
_MAX_FAILED_STARTS = 4
# A worker whose event loop has not run for so long is unresponsive.
_UNRESPONSIVE_S = 20.0
# The same for its start, which takes about a second: what it needs is imported already.
_START_S = 60.0
_CHECK_S = 1.0
_POLL_S = 0.02
# If a check is late by so much, this process was stopped and its workers probably too: their time starts again.
_LATE_S = 2.0
# Time for a worker to end by itself that has lost its connection.
_ENDING_S = 5.0


class WorkerPool:
    """Until `stopping` is set, a worker that ends is replaced. `give_up` is called with the reason why the service must
    end, or has failed to end well."""

    def __init__(
        self,
        listener: socket.socket,
        fork_server: ForkServer,
        metrics: Metrics,
        stopping: asyncio.Event,
        give_up: Callable[[str], None],
    ) -> None:
        self.acceptor = Acceptor(listener, lambda connection: dispatch(connection, self._workers.values()))
        self._fork_server = fork_server
        self._metrics = metrics
        self._stopping = stopping
        self._give_up = give_up
        self._workers: dict[int, HttpWorker] = {}
        self._failed_starts = 0
        self._ended = asyncio.Event()

    def start(self, count: int, server: EngineServer, settings: Settings) -> None:
        """Start that many workers, which use the models of `server`. Raises OSError."""
        self._server = server
        self._settings = settings
        self._decode_memory = os.memfd_create("decode-memory")
        asyncio.get_running_loop().add_reader(self._fork_server, self._fork_server_ended)
        for _ in range(count):
            self._start_worker()

    def any_left(self) -> bool:
        """Return True if a worker has not ended."""
        return bool(self._workers)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to each worker. From any thread."""
        for worker in list(self._workers.values()):
            worker.process.send_signal(number)

    async def wait_until_serving(self, count: int) -> None:
        """Return once that many workers serve: before, they have nothing to drain at SIGTERM."""
        while sum(worker.serving for worker in self._workers.values()) < count:  # noqa: ASYNC110 - memory of theirs
            await asyncio.sleep(_POLL_S)

    async def wait_until_ended(self, until: float) -> bool:
        """Return True once all workers have ended, False if one has not by `until`, a time of perf_counter."""
        with suppress(TimeoutError):
            async with asyncio.timeout(until - perf_counter()):
                while self._workers:
                    self._ended.clear()
                    await self._ended.wait()
        asyncio.get_running_loop().remove_reader(self._fork_server)
        return not self._workers

    async def watch(self) -> None:
        """Kill workers that are unresponsive, until cancelled."""
        while True:
            checked_at = perf_counter()
            await asyncio.sleep(_CHECK_S)
            if perf_counter() - checked_at > _CHECK_S + _LATE_S:
                for worker in self._workers.values():
                    worker.ticked_at = perf_counter()
            for number, worker in self._workers.items():
                longest_s = _UNRESPONSIVE_S if worker.serving else _START_S
                if worker.process.pid is not None and worker.silent_seconds() > longest_s:
                    _log.error("HTTP worker %d is unresponsive: no tick for %.0f s", number, longest_s)
                    worker.kill_unresponsive()

    def lost(self, number: int) -> None:
        """A worker has closed its socket, or has sent a wrong message. If it does not end by itself, it is killed."""
        worker = self._workers.get(number)

        def kill() -> None:
            if worker is not None and worker in self._workers.values() and not self._stopping.is_set():
                worker.kill_unresponsive()

        asyncio.get_running_loop().call_later(_ENDING_S, kill)

    def _fork_server_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fork_server)
        self._restart_fork_server()

    def _restart_fork_server(self) -> None:
        if self._stopping.is_set():
            return
        loop = asyncio.get_running_loop()
        try:
            self._fork_server.restart()
        except OSError as error:
            self.acceptor.out_of_files.log("the fork server cannot be started: %s", error.strerror)
            loop.call_later(_RETRY_S, self._restart_fork_server)
        else:
            loop.add_reader(self._fork_server, self._fork_server_ended)

    def _start_worker(self) -> None:
        """Start a worker, or try again later if no number is free. Raises OSError."""
        loop = asyncio.get_running_loop()
        number = self._server.free_number(self._workers)
        if number is None:
            # Images of workers that have ended are still in a forward.
            loop.call_later(_RETRY_S, self._start_replacement)
            return
        with ExitStack() as worker_ends:
            messages = worker_ends.enter_context(self._server.add(number))
            dispatch_socket, connections = socket.socketpair()
            worker_ends.enter_context(connections)
            dispatch_socket.setblocking(False)
            status_memory, status = create_status()
            worker_ends.callback(os.close, status_memory)
            counts_memory = create_counts()
            worker_ends.callback(os.close, counts_memory)
            counts = CountsReader(counts_memory)
            descriptors = [messages.fileno(), connections.fileno(), status_memory, counts_memory, self._decode_memory]
            process = self._fork_server.fork(self._settings, number, descriptors)
            worker = HttpWorker(process, dispatch_socket, status, counts)
        self._workers[number] = worker
        loop.add_reader(dispatch_socket, self._read_replies, worker)
        loop.add_reader(process.life, self._read_life, number)

    def _start_replacement(self) -> None:
        if self._stopping.is_set():
            return
        try:
            self._start_worker()
        except OSError as error:
            # The system has no file descriptors, or the fork server has just died.
            self.acceptor.out_of_files.log("no HTTP worker can be started: %s", error.strerror)
            asyncio.get_running_loop().call_later(_RETRY_S, self._start_replacement)

    def _read_life(self, number: int) -> None:
        worker = self._workers[number]
        started = worker.process.pid is not None
        if not worker.process.read():
            self._replace(number)
        elif not started and worker.process.pid is not None:
            self._metrics.process_started(worker.process.pid, worker.counts)
            # Until now it waited for the fork server's imports.
            worker.ticked_at = perf_counter()

    def _read_replies(self, worker: HttpWorker) -> None:
        refused = worker.read_replies()
        if refused is None:
            asyncio.get_running_loop().remove_reader(worker.dispatch_socket)
        elif refused:
            self.acceptor.out_of_files.log(
                "process %s has no file descriptors left: raise the limit (ulimit -n)", worker.process.pid
            )
            self.acceptor.requeue(refused)

    def _replace(self, number: int) -> None:
        """The process of a worker has ended: free what it had, and start another unless the service stops."""
        worker = self._workers.pop(number)
        self._release(worker)
        self._server.process_ended(number)
        self._ended.set()
        status = worker.process.status
        if self._stopping.is_set():
            if status:
                self._give_up(f"an HTTP worker ended with status {status}")
            return
        described = "an unknown status" if status is None else f"status {status}"
        _log.error("HTTP worker %d ended with %s; starting a replacement", number, described)
        self._failed_starts = 0 if worker.serving else self._failed_starts + 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            self._give_up(f"{self._failed_starts} HTTP workers in a row ended before they served")
        else:
            self._metrics.worker_replaced("unresponsive" if worker.unresponsive else "ended")
            self._start_replacement()

    def _release(self, worker: HttpWorker) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(worker.process.life)
        os.close(worker.process.life)
        loop.remove_reader(worker.dispatch_socket)
        refused = worker.read_replies()
        worker.dispatch_socket.close()
        self.acceptor.requeue([*(refused or ()), *worker.unacknowledged])
        if worker.process.pid is not None:
            self._metrics.process_ended(worker.process.pid)
