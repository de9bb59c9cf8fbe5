"""The engine process: it has the models, accepts connections and hands them to its workers, starts these, and ends
last."""

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

from app.main import search_index_of_runtime, serving_options
from app.middleware.start_failures import refuse_to_start, start_error
from app.observability.metrics import CountsReader, Metrics, create_counts
from app.process.interpreter import freeze_loaded_objects, tune_interpreter
from app.process.listener import allow_many_connections, bind, log_listening
from app.process.logs import exit_at_once
from app.process.stopping import FORCED_AFTER_DRAIN_S, end_process, end_process_within, ended_by_signals
from app.server.acceptor import Acceptor
from app.server.server import handles_sighup
from app.settings import Settings
from app.workers.connection_dispatch import HttpWorker, hand
from app.workers.fork_server import ForkServer
from app.workers.http_worker import shared_told
from models.interface.errors import StartError

if TYPE_CHECKING:
    from models.workers.engine_server import EngineServer

_log = logging.getLogger(__name__)

# Where no number is free for a worker, one may be after so long.
_RETRY_S = 0.5

# So many workers in a row that end before they serve, and it is no accident.
_MOST_STILLBORN = 4

# A worker whose event loop has not turned for so long hangs. To start takes a second: what it needs is imported
# already.
_HANGS_S = 20.0
_LOOK_S = 1.0

# If that look comes so late, this process was stopped itself, and its workers with it: they have their time again.
_LATE_S = 2.0

# Bytes that a socket holds for a worker: all that can be said of its slots at once.
_SOCKET_BYTES = 1 << 20

# What a worker takes to end after its last answer.
_ENDING_S = 5.0

# After a fault of the engine process itself requests have so long, and the process at most.
_FAULT_DRAIN_S = 1.0
_FAULT_END_S = 3.0

# The time to drain is over by then: models have so long to end.
_LAST_S = 1.0


def serve_with_workers(settings: Settings, workers: int) -> None:
    """Serve by so many workers until SIGTERM, SIGINT or SIGHUP, then answer what was accepted. Ends the process when it
    cannot start."""
    tune_interpreter()
    endings = [signal.SIGTERM, signal.SIGINT]
    if handles_sighup():
        endings.append(signal.SIGHUP)
    # Nothing has been accepted until there are workers.
    for number in endings:
        signal.signal(number, lambda *_: exit_at_once(0))
    try:
        listener = bind(settings)
    except StartError as error:
        refuse_to_start(error)
    allow_many_connections()
    # While the models are loaded here, workers are prepared there.
    fork_server = ForkServer()
    engine = _Engine(settings, workers, listener, fork_server)
    threading.excepthook = engine.thread_failed
    with ended_by_signals():
        engine.load()
    try:
        # Not by asyncio.run, which waits for its threads in the end.
        asyncio.new_event_loop().run_until_complete(engine.serve(endings))
    except BaseException as error:  # noqa: BLE001 - whatever it was: no process is left
        engine.fault(error)
    engine.kill_workers()
    end_process(engine.failure)


class _Engine:
    def __init__(self, settings: Settings, workers: int, listener: socket.socket, fork_server: ForkServer) -> None:
        self.failure: str | None = None
        self._settings = settings
        self._workers_wanted = workers
        self._listener = listener
        self._fork_server = fork_server
        self._metrics = Metrics()
        self._workers: dict[int, HttpWorker] = {}
        self._acceptor = Acceptor(listener, lambda connection: hand(connection, self._workers.values()))
        self._stillborn = 0
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        # A fault of this process, not of what it serves: it cannot be relied on for anything any more.
        self._faulty = False
        self._drain_timeout_s = settings.drain_timeout_s

    def load(self) -> None:
        """Load the models. Ends the process where they cannot be served."""
        # Here, not above: the HTTP side is imported and tested without torch.
        from models.hardware.cores import available_cores  # noqa: PLC0415 - torch takes seconds to import
        from models.images.decode_memory import DecodeMemory  # noqa: PLC0415
        from models.workers.engine_server import EngineServer  # noqa: PLC0415

        settings, metrics = self._settings, self._metrics
        self._options = serving_options(settings)
        # Each worker has its share of them.
        self._decode_threads = -(-(settings.decode_threads or available_cores()) // self._workers_wanted)
        try:
            self._decode_memory = DecodeMemory(self._options.limits.max_decode_bytes)
            self._house: EngineServer = EngineServer(
                self._options,
                # Of one that has gone, images may still be in a forward when another is there.
                2 * self._workers_wanted,
                metrics,
                lambda accept: metrics.exposition(accept)[0].decode(),
                give_up=self._give_up,
                on_lost=self._lost,
                on_fault=self.fault,
            )
            # Each worker opens it for itself; here it is found out whether they can.
            search_index_of_runtime(self._house.serving, settings)
        except (StartError, OSError) as error:
            refuse_to_start(start_error(error) if isinstance(error, OSError) else error)
        metrics.watch(self._house.serving)
        freeze_loaded_objects()

    async def serve(self, endings: Sequence[signal.Signals]) -> None:
        """Serve until one of these signals comes."""
        self._loop = loop = asyncio.get_running_loop()
        if self.failure is not None:
            # Before anybody was served.
            return
        loop.set_exception_handler(self._callback_failed)
        for number in endings:
            loop.add_signal_handler(number, self._stop, signal.Signals(number).name)
        loop.add_reader(self._fork_server, self._fork_server_ended)
        looking = self._task(self._house.look_after())
        try:
            for _ in range(self._workers_wanted):
                self._start_worker()
        except OSError as error:
            reason = start_error(error)
            refuse_to_start(StartError(f"{reason}. GRADLESS_HTTP_WORKERS=0 serves by one process"))
        greeting = self._task(self._house.greeted(self._workers_wanted))
        stopping = loop.create_task(self._stopping.wait())
        await asyncio.wait([greeting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not self._stopping.is_set():
            self._acceptor.open()
            log_listening(self._settings, self._listener)
        watching = self._task(self._watch())
        await stopping
        watching.cancel()
        greeting.cancel()
        await self._end()
        looking.cancel()

    def fault(self, error: BaseException) -> None:
        """End the service soon: this process is not as it should be. From any thread."""
        self.failure = self.failure or f"the engine process is at fault: {type(error).__name__}: {error}"
        if self._faulty:
            return
        self._faulty = True
        self._drain_timeout_s = min(self._drain_timeout_s, _FAULT_DRAIN_S)
        end_process_within(_FAULT_END_S, self.failure, self.kill_workers)
        _log.critical("the engine process is at fault: the service ends", exc_info=error)
        self._begin_to_stop_soon()

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

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """One that lives as long as the service, or is waited for."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fault(error)

    def _stop(self, signal_name: str) -> None:
        if not self._stopping.is_set():
            _log.info("%s: answering what was accepted, then stopping", signal_name)
            self._begin_to_stop()
        elif signal_name == "SIGINT":
            for worker in self._workers.values():
                worker.process.send_signal(signal.SIGKILL)

    def _begin_to_stop(self) -> None:
        if self._stopping.is_set():
            return
        end_process_within(
            self._drain_timeout_s + FORCED_AFTER_DRAIN_S,
            "it had not ended by itself long after the time to drain",
            self.kill_workers,
        )
        self._stopping.set()
        # Before the socket closes: who comes now is told so.
        self._house.serving.drain()

    def _begin_to_stop_soon(self) -> None:
        if self._loop is not None:
            # It may have ended.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._begin_to_stop)

    def _give_up(self, reason: str) -> None:
        """From any thread."""
        self.failure = self.failure or reason
        self._begin_to_stop_soon()

    async def _end(self) -> None:
        """Wait for the workers, which answer what was accepted, then end the models."""
        until = perf_counter() + self._drain_timeout_s
        # What waits to be accepted is answered as well.
        await self._acceptor.close(until, lambda: bool(self._workers))
        for worker in self._workers.values():
            worker.process.send_signal(signal.SIGTERM)
        workers_until = until + (0 if self._faulty else _ENDING_S)
        while self._workers and perf_counter() < workers_until:
            self._ended.clear()
            try:
                await asyncio.wait_for(self._ended.wait(), workers_until - perf_counter())
            except TimeoutError:
                break
        if self._workers:
            self.failure = self.failure or "a worker was still answering when the time to drain was over"
            self.kill_workers()
        asyncio.get_running_loop().remove_reader(self._fork_server)
        if not await self._house.close(max(until - perf_counter(), min(self._drain_timeout_s, _LAST_S))):
            self.failure = self.failure or "a forward or a load was still running when the time to drain was over"

    def _fork_server_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fork_server)
        self._start_fork_server_again()

    def _start_fork_server_again(self) -> None:
        if self._stopping.is_set():
            return
        loop = asyncio.get_running_loop()
        try:
            self._fork_server.start_again()
        except OSError as error:
            self._acceptor.out_of_files.log("no fork server can be started: %s", error.strerror)
            loop.call_later(_RETRY_S, self._start_fork_server_again)
        else:
            loop.add_reader(self._fork_server, self._fork_server_ended)

    def _start_worker(self) -> None:
        loop = asyncio.get_running_loop()
        number = self._house.free_number(self._workers)
        if number is None:
            # Images of one that has gone are still in a forward.
            loop.call_later(_RETRY_S, self._start_another)
            return
        worker = self._workers[number] = self._forked(number)
        loop.add_reader(worker.handing, self._let_go, worker)
        loop.add_reader(worker.process.life, self._heard, number)

    def _forked(self, number: int) -> HttpWorker:
        # Here, not above: the HTTP side is imported and tested without torch.
        from models.workers.worker_runtime import WorkerOptions  # noqa: PLC0415

        options = WorkerOptions(
            decode_threads=self._decode_threads,
            decode_memory=self._decode_memory,
            limits=self._options.limits,
            deadline_s=self._options.deadline_s,
            longest_decode_s=self._options.longest_decode_s,
        )
        with ExitStack() as its_own:
            images, its_images = socket.socketpair()
            its_own.enter_context(its_images)
            channel, its_channel = socket.socketpair()
            its_own.enter_context(its_channel)
            handing, handed = socket.socketpair()
            its_own.enter_context(handed)
            for end in (images, its_images, channel, its_channel):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            handing.setblocking(False)
            told_descriptor, told = shared_told()
            its_own.callback(os.close, told_descriptor)
            counts_descriptor = create_counts()
            its_own.callback(os.close, counts_descriptor)
            counts = CountsReader(counts_descriptor)
            process = self._fork_server.fork(
                (_share(self._settings, self._workers_wanted), options, number),
                [its_images.fileno(), its_channel.fileno(), handed.fileno(), told_descriptor, counts_descriptor],
            )
            self._house.add(number, images, channel)
        return HttpWorker(process, handing, told, counts)

    def _heard(self, number: int) -> None:
        worker = self._workers[number]
        started = worker.process.pid is not None
        if not worker.process.hear():
            self._worker_ended(number)
        elif not started and worker.process.pid is not None:
            self._metrics.process_started(worker.process.pid, worker.counts)
            # It waited for the fork server's imports until now.
            worker.give_time()

    def _let_go(self, worker: HttpWorker) -> None:
        refused = worker.let_go()
        if refused is None:
            asyncio.get_running_loop().remove_reader(worker.handing)
        elif refused:
            self._acceptor.out_of_files.log(
                "process %s has no file descriptors left: raise the limit (ulimit -n)", worker.process.pid
            )
            self._acceptor.requeue(refused)

    def _start_another(self) -> None:
        if self._stopping.is_set():
            return
        try:
            self._start_worker()
        except OSError as error:
            # The system has no file descriptors, or the fork server has just died.
            self._acceptor.out_of_files.log("no worker can be started: %s", error.strerror)
            asyncio.get_running_loop().call_later(_RETRY_S, self._start_another)

    def _worker_ended(self, number: int) -> None:
        worker = self._workers.pop(number)
        loop = asyncio.get_running_loop()
        loop.remove_reader(worker.process.life)
        worker.process.close()
        loop.remove_reader(worker.handing)
        refused = worker.let_go()
        worker.handing.close()
        self._acceptor.requeue([*(refused or ()), *worker.not_taken])
        self._house.process_ended(number)
        self._ended.set()
        if worker.process.pid is not None:
            self._metrics.process_ended(worker.process.pid)
        status = worker.process.status
        if self._stopping.is_set():
            if status:
                self.failure = self.failure or f"a worker ended with status {status}"
            return
        told = "an unknown status" if status is None else f"status {status}"
        _log.error("worker %d ended with %s: another takes its place", number, told)
        self._stillborn = 0 if worker.at_work else self._stillborn + 1
        if self._stillborn >= _MOST_STILLBORN:
            self._give_up(f"{self._stillborn} workers in a row have ended before they served")
        else:
            self._metrics.worker_replaced("hung" if worker.hung else "ended")
            self._start_another()

    async def _watch(self) -> None:
        while True:
            looked_at = perf_counter()
            await asyncio.sleep(_LOOK_S)
            if perf_counter() - looked_at > _LOOK_S + _LATE_S:
                for worker in self._workers.values():
                    worker.give_time()
            for number, worker in self._workers.items():
                if worker.process.pid is not None and worker.silent_seconds() > _HANGS_S:
                    worker.hung = True
                    _log.error("worker %d has not turned for %.0f s", number, _HANGS_S)
                    worker.process.send_signal(signal.SIGKILL)

    def _lost(self, number: int) -> None:
        """It has closed its end of a socket, or does not read its answers, and may hang."""
        worker = self._workers.get(number)
        if worker is not None:
            asyncio.get_running_loop().call_later(_ENDING_S, self._end_hanging, worker)

    def _end_hanging(self, worker: HttpWorker) -> None:
        if not self._stopping.is_set() and worker in self._workers.values():
            worker.hung = True
            worker.process.send_signal(signal.SIGKILL)


def _share(settings: Settings, workers: int) -> Settings:
    """A worker's part of what the settings give to the whole service."""
    held = max(settings.max_request_bytes, settings.max_held_bytes // workers)
    return settings.model_copy(update={"max_held_bytes": held})
