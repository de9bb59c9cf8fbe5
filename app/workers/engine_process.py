"""The engine process: it has the models, accepts connections and sends them to its HTTP workers, which it starts and
replaces. It ends last."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack, suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any

from app.main import open_search_index, serving_options
from app.observability.metrics import CountsReader, Metrics, create_counts
from app.process.lifetime import (
    FORCED_AFTER_DRAIN_S,
    allow_many_connections,
    end_process,
    end_process_within,
    ended_by_signals,
    freeze_loaded_objects,
    refuse_to_start,
    start_error,
    tune_interpreter,
)
from app.process.logs import exit_at_once
from app.server.listener import Acceptor, bind, log_listening, reserve_grpc_port
from app.server.server import handles_sighup
from app.settings import Settings
from app.workers.fork_server import ForkServer
from app.workers.http_worker import HttpWorker, create_status, dispatch
from models.interface.errors import StartError

if TYPE_CHECKING:
    from models.workers.engine_server import EngineServer

_log = logging.getLogger(__name__)

# Delay before another attempt to start a worker or a fork server.
_RETRY_S = 0.5
# The service ends after so many workers in a row that ended before they served.
_MAX_FAILED_STARTS = 4
# A worker whose event loop has not run for so long is unresponsive. It starts in about a second: what it needs is
# imported already.
_UNRESPONSIVE_S = 20.0
_CHECK_S = 1.0
# If a check is late by so much, this process was stopped and its workers probably too: their time starts again.
_LATE_S = 2.0
# Time for a worker to end after its last answer, and for one that has lost its connection to end by itself.
_ENDING_S = 5.0
# After a fault of the engine process: time for requests, and for the process to end.
_FAULT_DRAIN_S = 1.0
_FAULT_END_S = 3.0
# Time for the models to end after the drain timeout.
_MODELS_END_S = 1.0


def serve_with_workers(settings: Settings, workers: int) -> None:
    """Serve with that many HTTP workers until SIGTERM, SIGINT or SIGHUP, then drain. Ends the process
    if it cannot start."""
    tune_interpreter()
    endings = [signal.SIGTERM, signal.SIGINT]
    if handles_sighup():
        endings.append(signal.SIGHUP)
    # There is nothing to drain before there are workers.
    for number in endings:
        signal.signal(number, lambda *_: exit_at_once(0))
    try:
        listener = bind(settings)
        grpc_port = reserve_grpc_port(settings)
    except StartError as error:
        refuse_to_start(error)
    allow_many_connections()
    # It imports while the models are loaded here.
    fork_server = ForkServer()
    engine = _Engine(settings, workers, listener, grpc_port, fork_server)
    threading.excepthook = engine.thread_failed
    with ended_by_signals():
        engine.load()
    try:
        # asyncio.run would wait for its threads at the end.
        asyncio.new_event_loop().run_until_complete(engine.serve(endings))
    except BaseException as error:  # noqa: BLE001 - any error: no process may be left
        engine.fault(error)
    engine.kill_workers()
    end_process(engine.failure)


class _Engine:
    def __init__(
        self,
        settings: Settings,
        workers: int,
        listener: socket.socket,
        grpc_port: socket.socket | None,
        fork_server: ForkServer,
    ) -> None:
        self.failure: str | None = None
        self._settings = settings
        self._worker_count = workers
        self._listener = listener
        # Open as long as workers may be started, so that no other process takes the port meanwhile.
        self._grpc_port = grpc_port
        self._fork_server = fork_server
        self._metrics = Metrics()
        self._workers: dict[int, HttpWorker] = {}
        self._acceptor = Acceptor(listener, lambda connection: dispatch(connection, self._workers.values()))
        self._failed_to_start = 0
        self._stopping = asyncio.Event()
        self._worker_ended = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        # This process itself has failed, not one of its models: its state cannot be relied on any more.
        self._faulty = False
        self._drain_timeout_s = settings.drain_timeout_s

    def load(self) -> None:
        """Load the models. Ends the process if they cannot be served."""
        # Not at the top: the HTTP side is imported and tested without torch.
        from models.hardware.cores import worker_decode_threads  # noqa: PLC0415 - torch takes seconds to import
        from models.workers.engine_server import EngineServer  # noqa: PLC0415

        settings, metrics, workers = self._settings, self._metrics, self._worker_count
        options = serving_options(settings)
        # The workers share what the settings give to the service.
        shares = {
            "http_workers": workers,
            "max_held_bytes": max(settings.max_request_bytes, settings.max_held_bytes // workers),
            "decode_threads": worker_decode_threads(settings.decode_threads, workers),
            "grpc_port": None if self._grpc_port is None else self._grpc_port.getsockname()[1],
        }
        self._worker_settings = settings.model_copy(update=shares)
        try:
            self._decode_memory = os.memfd_create("decode-memory")
            self._server: EngineServer = EngineServer(
                options,
                # While a worker is replaced, images of the old one may still be in a forward.
                2 * workers,
                metrics,
                lambda accept: metrics.exposition(accept)[0].decode(),
                give_up=self._give_up,
                on_lost=self._lost,
                on_fault=self.fault,
            )
            # Each worker opens it for itself; here it is checked.
            open_search_index(self._server.runtime, settings)
        except (StartError, OSError) as error:
            refuse_to_start(error)
        metrics.watch(self._server.runtime)
        freeze_loaded_objects()

    async def serve(self, endings: Sequence[signal.Signals]) -> None:
        """Serve until one of these signals arrives."""
        self._loop = loop = asyncio.get_running_loop()
        if self.failure is not None:
            # A model failed before anything was served.
            return
        loop.set_exception_handler(self._callback_failed)
        for number in endings:
            loop.add_signal_handler(number, self._on_signal, signal.Signals(number).name)
        loop.add_reader(self._fork_server, self._fork_server_ended)
        running = loop.create_task(self._must_succeed(self._server.run()))
        try:
            for _ in range(self._worker_count):
                self._start_worker()
        except OSError as error:
            reason = start_error(error)
            refuse_to_start(StartError(f"{reason}. GRADLESS_HTTP_WORKERS=0 serves by one process"))
        workers_ready = loop.create_task(self._must_succeed(self._server.wait_for_workers(self._worker_count)))
        stopping = loop.create_task(self._stopping.wait())
        await asyncio.wait([workers_ready, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not self._stopping.is_set():
            self._acceptor.open()
            log_listening(self._settings, self._listener, self._server.runtime.cards.values())
            if self._grpc_port is not None:
                host, port = self._grpc_port.getsockname()[:2]
                _log.info(
                    "listening for gRPC", extra={"address": f"[{host}]:{port}" if ":" in host else f"{host}:{port}"}
                )
        watching = loop.create_task(self._must_succeed(self._watch()))
        await stopping
        watching.cancel()
        workers_ready.cancel()
        await self._end()
        running.cancel()

    def fault(self, error: BaseException) -> None:
        """End the service soon, because this process itself has failed. From any thread."""
        self.failure = self.failure or f"the engine process failed: {type(error).__name__}: {error}"
        if self._faulty:
            return
        self._faulty = True
        self._drain_timeout_s = min(self._drain_timeout_s, _FAULT_DRAIN_S)
        end_process_within(_FAULT_END_S, self.failure, self.kill_workers)
        _log.critical("the engine process failed; stopping the service", exc_info=error)
        self._stop_soon()

    def thread_failed(self, failed: threading.ExceptHookArgs) -> None:
        """As threading.excepthook."""
        self.fault(failed.exc_value or failed.exc_type())

    def kill_workers(self) -> None:
        """From any thread."""
        self._fork_server.kill()
        for worker in list(self._workers.values()):
            worker.process.send_signal(signal.SIGKILL)

    def _callback_failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.fault(context.get("exception") or RuntimeError(context["message"]))

    async def _must_succeed(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - any error is a fault of the process
            self.fault(error)

    def _on_signal(self, signal_name: str) -> None:
        if not self._stopping.is_set():
            _log.info("%s: answering what was accepted, then stopping", signal_name)
            self._stop()
        elif signal_name == "SIGINT":
            for worker in self._workers.values():
                worker.process.send_signal(signal.SIGKILL)

    def _stop(self) -> None:
        if self._stopping.is_set():
            return
        end_process_within(
            self._drain_timeout_s + FORCED_AFTER_DRAIN_S,
            "it had not ended by itself long after the time to drain",
            self.kill_workers,
        )
        self._stopping.set()
        # Before the listener closes: connections that are accepted until then get 503.
        self._server.runtime.drain()

    def _stop_soon(self) -> None:
        """From any thread."""
        if self._loop is not None:
            # The loop may have ended.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop)

    def _give_up(self, reason: str) -> None:
        """From any thread."""
        self.failure = self.failure or reason
        self._stop_soon()

    async def _end(self) -> None:
        """Wait for the workers, which answer what was accepted, then end the models."""
        until = perf_counter() + self._drain_timeout_s
        # Connections in the kernel's queue are answered as well.
        await self._acceptor.close(until, lambda: bool(self._workers))
        for worker in self._workers.values():
            worker.process.send_signal(signal.SIGTERM)
        workers_until = until + (0 if self._faulty else _ENDING_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(workers_until - perf_counter()):
                while self._workers:
                    self._worker_ended.clear()
                    await self._worker_ended.wait()
        if self._workers:
            self.failure = self.failure or "an HTTP worker was still answering when the drain timeout ended"
            self.kill_workers()
        asyncio.get_running_loop().remove_reader(self._fork_server)
        if not await self._server.close(max(until - perf_counter(), min(self._drain_timeout_s, _MODELS_END_S))):
            self.failure = self.failure or "a forward or a load was still running when the time to drain was over"

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
            self._acceptor.out_of_files.log("the fork server cannot be started: %s", error.strerror)
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
            process = self._fork_server.fork(self._worker_settings, number, descriptors)
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
            self._acceptor.out_of_files.log("no HTTP worker can be started: %s", error.strerror)
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
            self._acceptor.out_of_files.log(
                "process %s has no file descriptors left: raise the limit (ulimit -n)", worker.process.pid
            )
            self._acceptor.requeue(refused)

    def _replace(self, number: int) -> None:
        """The process of a worker has ended: free what it had, and start another unless the service stops."""
        worker = self._workers.pop(number)
        self._release(worker)
        self._server.process_ended(number)
        self._worker_ended.set()
        status = worker.process.status
        if self._stopping.is_set():
            if status:
                self.failure = self.failure or f"an HTTP worker ended with status {status}"
            return
        described = "an unknown status" if status is None else f"status {status}"
        _log.error("HTTP worker %d ended with %s; starting a replacement", number, described)
        self._failed_to_start = 0 if worker.status.ticks else self._failed_to_start + 1
        if self._failed_to_start >= _MAX_FAILED_STARTS:
            self._give_up(f"{self._failed_to_start} HTTP workers in a row ended before they served")
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
        self._acceptor.requeue([*(refused or ()), *worker.unacknowledged])
        if worker.process.pid is not None:
            self._metrics.process_ended(worker.process.pid)

    async def _watch(self) -> None:
        while True:
            checked_at = perf_counter()
            await asyncio.sleep(_CHECK_S)
            if perf_counter() - checked_at > _CHECK_S + _LATE_S:
                for worker in self._workers.values():
                    worker.ticked_at = perf_counter()
            for number, worker in self._workers.items():
                if worker.process.pid is not None and worker.silent_seconds() > _UNRESPONSIVE_S:
                    _log.error("HTTP worker %d is unresponsive: no tick for %.0f s", number, _UNRESPONSIVE_S)
                    worker.kill_unresponsive()

    def _lost(self, number: int) -> None:
        """A worker has closed its socket, or has sent a wrong message. If it does not end by itself, it is killed."""
        worker = self._workers.get(number)

        def kill() -> None:
            if worker is not None and worker in self._workers.values() and not self._stopping.is_set():
                worker.kill_unresponsive()

        asyncio.get_running_loop().call_later(_ENDING_S, kill)
