"""The engine process: it has the models, accepts connections and hands them to its fronts, starts these, and ends
last."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerProcess
from time import perf_counter
from typing import TYPE_CHECKING

from app.fronts.front_process import Connections, run_front
from app.listening import allow_many_connections, bind, say_serving
from app.logs import configure_logging
from app.main import search_index_beside, serving_options
from app.metrics import Metrics
from app.server import end_without_success, tune_interpreter
from app.settings import Settings
from models.errors import StartError

if TYPE_CHECKING:
    from models.fronts.house import House

_log = logging.getLogger(__name__)

# Imported once, by the process that fronts are forks of.
_PRELOADED = ["app.fronts.front_process", "models.fronts.front"]

_BACKLOG = 2048
# As many connections as are accepted before anything else has its turn.
_AT_ONCE = 64
# Where there are no more file descriptors, the next may be free after so long.
_PAUSE_S = 0.5

# A front that ends sooner after its start has not got to work. So many in a row, and it is no accident.
_YOUNG_S = 10.0
_MOST_YOUNG = 4

# Bytes that a socket holds for a front: all that can be said of its slots at once.
_SOCKET_BYTES = 1 << 20

# What a front takes to end after its last answer.
_ENDING_S = 5.0


def serve_by_fronts(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was accepted. Raises SystemExit when it cannot start."""
    configure_logging(settings.log_level, settings.log_format, shared=True)
    tune_interpreter()
    # Nothing has been accepted until there are fronts.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    listener = bind(settings)
    allow_many_connections()
    get_context("forkserver").set_forkserver_preload(_PRELOADED)
    # While the models are loaded here, fronts are prepared there.
    forkserver.ensure_running()
    engine = _Engine(settings, listener)
    engine.load()
    asyncio.run(engine.serve())
    end_without_success(engine.failure)


@dataclass(slots=True)
class _Front:
    process: ForkServerProcess
    started_at: float
    handing: socket.socket
    told: ctypes.Array[ctypes.c_uint]
    handed: int = 0

    @property
    def open_connections(self) -> int:
        """Those that it has said it has, and those that it has not yet come to."""
        taken, open_connections = self.told
        return open_connections + self.handed - taken


class _Engine:
    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self.failure: str | None = None
        self._settings = settings
        self._listener = listener
        self._metrics = Metrics()
        self._fronts: dict[int, _Front] = {}
        self._young = 0
        self._stopping: asyncio.Event | None = None
        self._ended = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def load(self) -> None:
        """Load the models. Raises SystemExit where they cannot be served."""
        # Here, not above: the HTTP side is imported and tested without torch.
        from models.fronts.house import House  # noqa: PLC0415

        settings, metrics = self._settings, self._metrics
        try:
            self._house: House = House(
                serving_options(settings),
                # Of one that has gone, images may still be in a forward when another is there.
                2 * settings.fronts,
                metrics,
                lambda accept: metrics.exposition(accept)[0].decode(),
                give_up=self._give_up,
                on_lost=self._lost,
            )
            # Each front opens it for itself; here it is found out whether they can.
            search_index_beside(self._house.serving, settings)
        except StartError as error:
            _log.error("cannot start: %s", error)
            sys.exit(1)
        metrics.watch(self._house.serving)
        gc.collect()
        gc.freeze()

    async def serve(self) -> None:
        """Serve until told to stop."""
        self._loop = loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, signal.Signals(number).name)
        looking = loop.create_task(self._house.look_after())
        for _ in range(self._settings.fronts):
            self._start_front()
        greeting = loop.create_task(self._house.greeted(self._settings.fronts))
        stopping = loop.create_task(self._stopping.wait())
        await asyncio.wait([greeting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not self._stopping.is_set():
            self._listener.setblocking(False)
            self._listener.listen(_BACKLOG)
            loop.add_reader(self._listener, self._accept)
            say_serving(self._settings, self._listener)
        await stopping
        greeting.cancel()
        await self._end()
        looking.cancel()
        gc.unfreeze()

    def _stop(self, signal_name: str) -> None:
        if self._stopping is None or not self._stopping.is_set():
            _log.info("%s: answering what was accepted, then stopping", signal_name)
            self._begin_to_stop()
        elif signal_name == "SIGINT":
            for front in self._fronts.values():
                front.process.kill()

    def _begin_to_stop(self) -> None:
        # Before the socket closes: who comes now is told so.
        self._house.serving.drain()
        if self._stopping is not None:
            self._stopping.set()

    def _give_up(self, reason: str) -> None:
        """From any thread."""
        self.failure = reason
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_to_stop)

    async def _end(self) -> None:
        """Wait for the fronts, which answer what was accepted, then end the models."""
        loop, drain_timeout_s = asyncio.get_running_loop(), self._settings.drain_timeout_s
        # What waits to be accepted is answered as well.
        self._accept()
        loop.remove_reader(self._listener)
        self._listener.close()
        for front in self._fronts.values():
            front.process.terminate()
        until = perf_counter() + drain_timeout_s + _ENDING_S
        while self._fronts and perf_counter() < until:
            self._ended.clear()
            try:
                await asyncio.wait_for(self._ended.wait(), until - perf_counter())
            except TimeoutError:
                break
        for front in self._fronts.values():
            self.failure = self.failure or "a front was still answering when the time to drain was over"
            front.process.kill()
        if not await asyncio.to_thread(self._house.close, drain_timeout_s):
            self.failure = self.failure or "a forward or a load was still running when the time to drain was over"

    def _start_front(self) -> None:
        loop = asyncio.get_running_loop()
        number = self._house.free_number()
        if number is None:
            # Images of one that has gone are still in a forward.
            loop.call_later(_PAUSE_S, self._start_another)
            return
        # Here, not above: the HTTP side is imported and tested without torch.
        from models.fronts.front import Place  # noqa: PLC0415

        images, its_images = socket.socketpair()
        channel, its_channel = socket.socketpair()
        handing, handed = socket.socketpair()
        for end in (images, its_images, channel, its_channel):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        handing.setblocking(False)
        context = get_context("forkserver")
        told = context.RawArray("I", 2)
        process = context.Process(
            target=run_front,
            args=(
                _share(self._settings),
                Place(number, its_images, its_channel),
                Connections(handed, told),
            ),
            name=f"front-{number}",
        )
        process.start()
        for end in (its_images, its_channel, handed):
            end.close()
        self._house.add(number, images, channel)
        self._fronts[number] = _Front(process, perf_counter(), handing, told)
        loop.add_reader(process.sentinel, self._front_ended, number)

    def _start_another(self) -> None:
        if self._stopping is None or not self._stopping.is_set():
            self._start_front()

    def _front_ended(self, number: int) -> None:
        front = self._fronts.pop(number)
        asyncio.get_running_loop().remove_reader(front.process.sentinel)
        front.process.join()
        front.handing.close()
        self._ended.set()
        status = front.process.exitcode
        if self._stopping is not None and self._stopping.is_set():
            if status:
                self.failure = self.failure or f"a front ended with status {status}"
            return
        _log.error("front %d ended with status %s: another takes its place", number, status)
        self._young = self._young + 1 if perf_counter() - front.started_at < _YOUNG_S else 0
        if self._young >= _MOST_YOUNG:
            self._give_up(f"{self._young} fronts in a row have ended soon after their start")
        else:
            self._start_front()

    def _lost(self, number: int) -> None:
        """It has closed its end of a socket, or does not read its answers, and may hang."""
        front = self._fronts.get(number)
        if front is not None:
            asyncio.get_running_loop().call_later(_ENDING_S, self._end_hanging, front)

    def _end_hanging(self, front: _Front) -> None:
        if self._stopping is not None and not self._stopping.is_set() and front.process.is_alive():
            front.process.kill()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if self._loop is not None and self._stopping is not None and not self._stopping.is_set():
                    _log.warning("no connection can be accepted: %s", error.strerror)
                    self._loop.remove_reader(self._listener)
                    self._loop.call_later(_PAUSE_S, self._accept_again)
                return
            with connection:
                self._hand_over(connection)

    def _accept_again(self) -> None:
        if self._loop is not None and self._stopping is not None and not self._stopping.is_set():
            self._loop.add_reader(self._listener, self._accept)

    def _hand_over(self, connection: socket.socket) -> None:
        """To the front with the fewest; with none, the caller finds the connection closed."""
        for front in sorted(self._fronts.values(), key=lambda front: front.open_connections):
            try:
                socket.send_fds(front.handing, [b"."], [connection.fileno()])
            except OSError:
                # It is ending, or has not come to many.
                continue
            front.handed += 1
            return


def _share(settings: Settings) -> Settings:
    """A front's part of what the settings give to the whole service."""
    from models.devices import decode_threads  # noqa: PLC0415 - as above

    threads = settings.decode_threads or decode_threads()
    return settings.model_copy(
        update={
            "fronts": 0,
            "decode_threads": max(1, -(-threads // settings.fronts)),
            "max_held_bytes": max(settings.max_request_bytes, settings.max_held_bytes // settings.fronts),
        }
    )
