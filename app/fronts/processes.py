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
from contextlib import suppress
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
# Where there are no more file descriptors, the next may be free after so long; where fronts are behind, a place.
_PAUSE_S = 0.5
_FULL_PAUSE_S = 0.005

# So many fronts in a row that end before they serve, and it is no accident.
_MOST_STILLBORN = 4

# Bytes that a socket holds for a front: all that can be said of its slots at once.
_SOCKET_BYTES = 1 << 20

# What a front takes to end after its last answer.
_ENDING_S = 5.0


def serve_by_fronts(settings: Settings, fronts: int) -> None:
    """Serve by so many fronts until SIGTERM or SIGINT, then answer what was accepted. Raises SystemExit when it cannot
    start."""
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
    engine = _Engine(settings, fronts, listener)
    engine.load()
    asyncio.run(engine.serve())
    end_without_success(engine.failure)


@dataclass(slots=True)
class _Front:
    process: ForkServerProcess
    handing: socket.socket
    told: ctypes.Array[ctypes.c_uint]
    handed: int = 0

    @property
    def open_connections(self) -> int:
        """Those that it has said it has, and those that it has not yet come to."""
        taken, open_connections, _ = self.told
        return open_connections + self.handed - taken

    @property
    def at_work(self) -> bool:
        """Whether it has begun to serve."""
        return bool(self.told[2])


class _Engine:
    def __init__(self, settings: Settings, fronts: int, listener: socket.socket) -> None:
        self.failure: str | None = None
        self._settings = settings
        self._fronts_wanted = fronts
        self._listener = listener
        self._metrics = Metrics()
        self._fronts: dict[int, _Front] = {}
        self._stillborn = 0
        # Accepted, and not handed over yet.
        self._held: socket.socket | None = None
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
                2 * self._fronts_wanted,
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
        if self.failure is not None:
            # Before anybody was served.
            return
        self._stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, signal.Signals(number).name)
        looking = loop.create_task(self._house.look_after())
        looking.add_done_callback(self._looked)
        for _ in range(self._fronts_wanted):
            self._start_front()
        greeting = loop.create_task(self._house.greeted(self._fronts_wanted))
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

    def _looked(self, looking: asyncio.Task[None]) -> None:
        error = None if looking.cancelled() else looking.exception()
        if error is not None:
            _log.error("the engine process is at fault", exc_info=error)
            self._give_up(f"{type(error).__name__}: {error}")

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
        loop.remove_reader(self._listener)
        until = perf_counter() + drain_timeout_s
        # What waits to be accepted is answered as well.
        while self._accept() and self._fronts and perf_counter() < until:  # noqa: ASYNC110 - it waits in the kernel
            await asyncio.sleep(_FULL_PAUSE_S)
        self._listener.close()
        for front in self._fronts.values():
            front.process.terminate()
        until += _ENDING_S
        while self._fronts and perf_counter() < until:
            self._ended.clear()
            try:
                await asyncio.wait_for(self._ended.wait(), until - perf_counter())
            except TimeoutError:
                break
        for front in self._fronts.values():
            self.failure = self.failure or "a front was still answering when the time to drain was over"
            front.process.kill()
        if not await self._house.close(drain_timeout_s):
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
        told = context.RawArray("I", 3)
        process = context.Process(
            target=run_front,
            args=(
                _share(self._settings, self._fronts_wanted),
                Place(number, its_images, its_channel),
                Connections(handed, told),
            ),
            name=f"front-{number}",
        )
        process.start()
        for end in (its_images, its_channel, handed):
            end.close()
        self._house.add(number, images, channel)
        self._fronts[number] = _Front(process, handing, told)
        loop.add_reader(process.sentinel, self._front_ended, number)

    def _start_another(self) -> None:
        if self._serving:
            self._start_front()

    def _front_ended(self, number: int) -> None:
        front = self._fronts.pop(number)
        asyncio.get_running_loop().remove_reader(front.process.sentinel)
        front.process.join()
        front.handing.close()
        self._ended.set()
        status = front.process.exitcode
        if not self._serving:
            if status:
                self.failure = self.failure or f"a front ended with status {status}"
            return
        _log.error("front %d ended with status %s: another takes its place", number, status)
        self._stillborn = 0 if front.at_work else self._stillborn + 1
        if self._stillborn >= _MOST_STILLBORN:
            self._give_up(f"{self._stillborn} fronts in a row have ended before they served")
        else:
            self._start_front()

    def _lost(self, number: int) -> None:
        """It has closed its end of a socket, or does not read its answers, and may hang."""
        front = self._fronts.get(number)
        if front is not None:
            asyncio.get_running_loop().call_later(_ENDING_S, self._end_hanging, front)

    def _end_hanging(self, front: _Front) -> None:
        if self._serving and front.process.is_alive():
            front.process.kill()

    def _accept(self) -> bool:
        """Hand over those that wait, or some of many. False where there is none left, or none can be had."""
        for _ in range(_AT_ONCE):
            if self._held is None:
                try:
                    self._held, _ = self._listener.accept()
                except BlockingIOError:
                    return False
                except OSError as error:
                    if self._serving:
                        _log.warning("no connection can be accepted: %s", error.strerror)
                        self._pause_accepting(_PAUSE_S)
                    return False
            if not self._hand_over(self._held):
                # All have more than they have come to. Whoever comes meanwhile waits in the kernel.
                if self._serving:
                    self._pause_accepting(_FULL_PAUSE_S)
                return True
            self._held.close()
            self._held = None
        return True

    def _pause_accepting(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        loop.call_later(seconds, self._accept_again)

    def _accept_again(self) -> None:
        if self._serving:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    @property
    def _serving(self) -> bool:
        return self._stopping is not None and not self._stopping.is_set()

    def _hand_over(self, connection: socket.socket) -> bool:
        """To the front with the fewest. False where none takes it now."""
        for front in sorted(self._fronts.values(), key=lambda front: front.open_connections):
            # One that is ending, or has not come to many, takes no more.
            with suppress(OSError):
                socket.send_fds(front.handing, [b"."], [connection.fileno()])
                front.handed += 1
                return True
        return False


def _share(settings: Settings, fronts: int) -> Settings:
    """A front's part of what the settings give to the whole service."""
    from models.devices import available_cores  # noqa: PLC0415 - as above

    threads = settings.decode_threads or available_cores()
    return settings.model_copy(
        update={
            "decode_threads": -(-threads // fronts),
            "max_held_bytes": max(settings.max_request_bytes, settings.max_held_bytes // fronts),
        }
    )
