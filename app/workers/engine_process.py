"""The engine process: it has the models and the pool of HTTP workers. It ends last."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any

from app.http.hosts import host_and_port
from app.main import open_search_index, serving_options
from app.observability.metrics import Metrics
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
from app.server.listener import bind, log_listening, reserve_grpc_port
from app.server.server import handles_sighup
from app.settings import Settings
from app.workers.fork_server import ForkServer
from app.workers.worker_pool import WorkerPool
from models.interface.errors import StartError

if TYPE_CHECKING:
    from models.workers.engine_server import EngineServer

_log = logging.getLogger(__name__)

# Time for a worker to end after its last answer.
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
    engine = _Engine(settings, workers)
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
    """The engine process: models, HTTP workers and their connections. The constructor ends the process if an address
    cannot be used."""

    def __init__(self, settings: Settings, workers: int) -> None:
        self.failure: str | None = None
        self._settings = settings
        self._worker_count = workers
        try:
            self._listener = bind(settings)
            # Open as long as workers may be started, so that no other process takes the port meanwhile.
            self._grpc_port = reserve_grpc_port(settings)
        except StartError as error:
            refuse_to_start(error)
        allow_many_connections()
        # It imports while the models are loaded here.
        self._fork_server = ForkServer()
        self._metrics = Metrics()
        self._stopping = asyncio.Event()
        self._workers = WorkerPool(self._listener, self._fork_server, self._metrics, self._stopping, self._give_up)
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
            self._server: EngineServer = EngineServer(
                options,
                # While a worker is replaced, images of the old one may still be in a forward.
                2 * workers,
                metrics,
                lambda accept: metrics.exposition(accept)[0].decode(),
                give_up=self._give_up,
                on_lost=self._workers.lost,
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
        running = loop.create_task(self._must_succeed(self._server.run()))
        try:
            self._workers.start(self._worker_count, self._server, self._worker_settings)
        except OSError as error:
            reason = start_error(error)
            refuse_to_start(StartError(f"{reason}. GRADLESS_HTTP_WORKERS=0 serves by one process"))
        watching = loop.create_task(self._must_succeed(self._workers.watch()))
        workers_ready = loop.create_task(self._must_succeed(self._workers.wait_until_serving(self._worker_count)))
        stopping = loop.create_task(self._stopping.wait())
        await asyncio.wait([workers_ready, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not self._stopping.is_set():
            self._workers.acceptor.open()
            log_listening(self._settings, self._listener, self._server.runtime.cards.values())
            if self._grpc_port is not None:
                host, port = self._grpc_port.getsockname()[:2]
                _log.info("listening for gRPC", extra={"address": host_and_port(host, port)})
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
        self._workers.send_signal(signal.SIGKILL)

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
            self._workers.send_signal(signal.SIGKILL)

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
        await self._workers.acceptor.close(until, self._workers.any_left)
        self._workers.send_signal(signal.SIGTERM)
        workers_until = until + (0 if self._faulty else _ENDING_S)
        if not await self._workers.wait_until_ended(workers_until):
            self.failure = self.failure or "an HTTP worker was still answering when the drain timeout ended"
            self.kill_workers()
        if not await self._server.close(max(until - perf_counter(), min(self._drain_timeout_s, _MODELS_END_S))):
            self.failure = self.failure or "a forward or a load was still running when the time to drain was over"
