"""The engine process: it has the models, accepts connections and hands them to its fronts, starts these, and ends
last."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Sequence
from multiprocessing import forkserver, get_context
from time import perf_counter
from typing import TYPE_CHECKING

from app.fronts.front_process import Connections, run_front
from app.fronts.handing import Doorkeeper, FrontProcess
from app.garbage import leave_out_what_is_loaded, take_in_everything
from app.listening import allow_many_connections, bind, say_serving
from app.logs import exit_at_once
from app.main import search_index_beside, serving_options
from app.metrics import Metrics
from app.server import end_without_success, heeds_hangup, tune_interpreter
from app.settings import Settings
from app.start_failures import refuse_to_start, start_error
from models.errors import StartError

if TYPE_CHECKING:
    from models.fronts.house import House

_log = logging.getLogger(__name__)

# Imported once, by the process that fronts are forks of.
_PRELOADED = ["app.fronts.front_process", "models.fronts.front"]

# Where no number is free for a front, one may be after so long.
_RETRY_S = 0.5

# So many fronts in a row that end before they serve, and it is no accident.
_MOST_STILLBORN = 4

# A front whose event loop has not turned for so long hangs. To start takes a second: what it needs is imported already.
_HANGS_S = 20.0
_LOOK_S = 1.0

# Bytes that a socket holds for a front: all that can be said of its slots at once.
_SOCKET_BYTES = 1 << 20

# What a front takes to end after its last answer.
_ENDING_S = 5.0


def serve_by_fronts(settings: Settings, fronts: int) -> None:
    """Serve by so many fronts until SIGTERM, SIGINT or SIGHUP, then answer what was accepted. Ends the process when it
    cannot start."""
    tune_interpreter()
    endings = [signal.SIGTERM, signal.SIGINT]
    if heeds_hangup():
        endings.append(signal.SIGHUP)
    # Nothing has been accepted until there are fronts.
    for number in endings:
        signal.signal(number, lambda *_: exit_at_once(0))
    try:
        listener = bind(settings)
    except StartError as error:
        refuse_to_start(error)
    allow_many_connections()
    get_context("forkserver").set_forkserver_preload(_PRELOADED)
    # A terminal that closes sends it to all processes at once. The one that fronts are forks of inherits this.
    heeded = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # While the models are loaded here, fronts are prepared there.
    forkserver.ensure_running()
    signal.signal(signal.SIGHUP, heeded)
    engine = _Engine(settings, fronts, listener)
    engine.load()
    asyncio.run(engine.serve(endings))
    end_without_success(engine.failure)


class _Engine:
    def __init__(self, settings: Settings, fronts: int, listener: socket.socket) -> None:
        self.failure: str | None = None
        self._settings = settings
        self._fronts_wanted = fronts
        self._listener = listener
        self._metrics = Metrics()
        self._fronts: dict[int, FrontProcess] = {}
        self._doorkeeper = Doorkeeper(listener, self._fronts.values)
        self._stillborn = 0
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def load(self) -> None:
        """Load the models. Ends the process where they cannot be served."""
        # Here, not above: the HTTP side is imported and tested without torch.
        from models.devices import available_cores  # noqa: PLC0415 - as above
        from models.fronts.house import House  # noqa: PLC0415
        from models.images.decode_memory import DecodeMemory  # noqa: PLC0415

        settings, metrics = self._settings, self._metrics
        self._options = serving_options(settings)
        # Each front has its share of them.
        self._decode_threads = -(-(settings.decode_threads or available_cores()) // self._fronts_wanted)
        try:
            self._decode_memory = DecodeMemory(self._options.limits.max_decode_bytes)
            self._house: House = House(
                self._options,
                # Of one that has gone, images may still be in a forward when another is there.
                2 * self._fronts_wanted,
                metrics,
                lambda accept: metrics.exposition(accept)[0].decode(),
                give_up=self._give_up,
                on_lost=self._lost,
            )
            # Each front opens it for itself; here it is found out whether they can.
            search_index_beside(self._house.serving, settings)
        except (StartError, OSError) as error:
            refuse_to_start(start_error(error) if isinstance(error, OSError) else error)
        metrics.watch(self._house.serving)
        leave_out_what_is_loaded()

    async def serve(self, endings: Sequence[signal.Signals]) -> None:
        """Serve until one of these signals comes."""
        self._loop = loop = asyncio.get_running_loop()
        if self.failure is not None:
            # Before anybody was served.
            return
        for number in endings:
            loop.add_signal_handler(number, self._stop, signal.Signals(number).name)
        looking = loop.create_task(self._house.look_after())
        looking.add_done_callback(self._looked)
        try:
            for _ in range(self._fronts_wanted):
                self._start_front()
        except OSError as error:
            reason = start_error(error)
            refuse_to_start(
                StartError(
                    f"{reason}. Fronts share memory, by files in /dev/shm; GRADLESS_FRONTS=0 serves without fronts"
                )
            )
        greeting = loop.create_task(self._house.greeted(self._fronts_wanted))
        stopping = loop.create_task(self._stopping.wait())
        await asyncio.wait([greeting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not self._stopping.is_set():
            self._doorkeeper.open()
            say_serving(self._settings, self._listener)
        watching = loop.create_task(self._watch())
        await stopping
        watching.cancel()
        greeting.cancel()
        await self._end()
        looking.cancel()
        take_in_everything()

    def _looked(self, looking: asyncio.Task[None]) -> None:
        error = None if looking.cancelled() else looking.exception()
        if error is not None:
            _log.error("the engine process is at fault", exc_info=error)
            self._give_up(f"{type(error).__name__}: {error}")

    def _stop(self, signal_name: str) -> None:
        if not self._stopping.is_set():
            _log.info("%s: answering what was accepted, then stopping", signal_name)
            self._begin_to_stop()
        elif signal_name == "SIGINT":
            for front in self._fronts.values():
                front.process.kill()

    def _begin_to_stop(self) -> None:
        # Before the socket closes: who comes now is told so.
        self._house.serving.drain()
        self._stopping.set()

    def _give_up(self, reason: str) -> None:
        """From any thread."""
        self.failure = reason
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_to_stop)

    async def _end(self) -> None:
        """Wait for the fronts, which answer what was accepted, then end the models."""
        drain_timeout_s = self._settings.drain_timeout_s
        until = perf_counter() + drain_timeout_s
        # What waits to be accepted is answered as well.
        await self._doorkeeper.close(until)
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
        number = self._house.free_number(self._fronts)
        if number is None:
            # Images of one that has gone are still in a forward.
            loop.call_later(_RETRY_S, self._start_another)
            return
        # Here, not above: the HTTP side is imported and tested without torch.
        from models.fronts.front import FrontOptions, Place  # noqa: PLC0415

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
                _share(self._settings, self._fronts_wanted),
                FrontOptions(
                    decode_threads=self._decode_threads,
                    decode_memory=self._decode_memory,
                    limits=self._options.limits,
                    deadline_s=self._options.deadline_s,
                    longest_decode_s=self._options.longest_decode_s,
                ),
                Place(number, its_images, its_channel),
                Connections(handed, told),
            ),
            name=f"front-{number}",
        )
        process.start()
        for end in (its_images, its_channel, handed):
            end.close()
        self._house.add(number, images, channel)
        front = self._fronts[number] = FrontProcess(process, handing, told)
        loop.add_reader(handing, self._let_go, front)
        loop.add_reader(process.sentinel, self._front_ended, number)

    def _let_go(self, front: FrontProcess) -> None:
        if not front.let_go():
            asyncio.get_running_loop().remove_reader(front.handing)

    def _start_another(self) -> None:
        if not self._stopping.is_set():
            self._start_front()

    def _front_ended(self, number: int) -> None:
        front = self._fronts.pop(number)
        loop = asyncio.get_running_loop()
        loop.remove_reader(front.process.sentinel)
        loop.remove_reader(front.handing)
        front.process.join()
        front.let_go()
        front.handing.close()
        self._doorkeeper.take_back(front.not_taken)
        self._house.process_ended(number)
        self._ended.set()
        status = front.process.exitcode
        if self._stopping.is_set():
            if status:
                self.failure = self.failure or f"a front ended with status {status}"
            return
        _log.error("front %d ended with status %s: another takes its place", number, status)
        self._stillborn = 0 if front.at_work else self._stillborn + 1
        if self._stillborn >= _MOST_STILLBORN:
            self._give_up(f"{self._stillborn} fronts in a row have ended before they served")
        else:
            self._metrics.front_replaced("hung" if front.hung else "ended")
            self._start_front()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            for number, front in self._fronts.items():
                if front.silent_seconds() > _HANGS_S:
                    front.hung = True
                    _log.error("front %d has not turned for %.0f s", number, _HANGS_S)
                    front.process.kill()

    def _lost(self, number: int) -> None:
        """It has closed its end of a socket, or does not read its answers, and may hang."""
        front = self._fronts.get(number)
        if front is not None:
            asyncio.get_running_loop().call_later(_ENDING_S, self._end_hanging, front)

    def _end_hanging(self, front: FrontProcess) -> None:
        if not self._stopping.is_set() and front.process.is_alive():
            front.hung = True
            front.process.kill()


def _share(settings: Settings, fronts: int) -> Settings:
    """A front's part of what the settings give to the whole service."""
    held = max(settings.max_request_bytes, settings.max_held_bytes // fronts)
    return settings.model_copy(update={"max_held_bytes": held})
