"""Messages between the engine process and an HTTP worker, and the calls that they carry.

The pixels and the answers themselves are in shared slots: a message names an image by its slot and the slot's
generation (models/workers/shared_slots.py)."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gradless.records import Progress
from models.images.preprocessing import Transform
from models.interface.errors import DrainingError, GradlessError
from models.interface.request import Parameters
from models.interface.results import ModelCard
from models.interface.telemetry import BatchReport
from models.workers.shared_slots import SlotShape

_log = logging.getLogger(__name__)

# An image is in its slot: version, slot, generation, and what its request asks for. What there is of each image is a
# plain tuple, which pickles several times faster than a class.
Submission = tuple[int, int, int, Parameters]

# An image's answer is in its slot: number of classes, seconds in the queue, and whether all values are finite.
Answered = tuple[int, float, bool]


@dataclass(frozen=True, slots=True)
class Answers:
    """Slot, generation and result of images: those of one batch that belong to one worker, or one that has failed.

    A result is None if the worker had cancelled the image."""

    version: int
    batch: BatchReport | None
    results: Sequence[tuple[int, int, Answered | Exception | None]]


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """One load of a model that is served. The first message with it comes with a file descriptor of its slots."""

    version: int
    card: ModelCard
    transform: Transform
    labels: tuple[str, ...]
    shape: SlotShape
    capacity: int

    @property
    def name(self) -> str:
        return self.card.name


@dataclass(frozen=True, slots=True)
class ServingState:
    """Everything that is served, in order. `number` grows with each announcement."""

    number: int
    models: tuple[ServedVersion, ...]
    down: frozenset[str]
    ready: bool
    draining: bool


@dataclass(frozen=True, slots=True)
class StateApplied:
    """The worker serves by the state of that number from now on."""

    number: int


Method = Literal["load", "unload", "compare", "exposition"]
OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Call:
    """Run a method in the engine process; without a method, cancel the call of that number. With `reports_progress` the
    method gets a callback as its last argument."""

    number: int
    method: Method | None
    arguments: tuple[Any, ...] = ()
    reports_progress: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The progress of a running call, or its end: a result or an error."""

    number: int
    progress: Progress | None = None
    result: Any = None
    error: Exception | None = None


class RpcClient:
    """The worker's side of calls, on its event loop. `send` is the channel's."""

    def __init__(self, send: Callable[[object], None]) -> None:
        self._send = send
        self._numbers = itertools.count()
        self._calls: dict[int, tuple[asyncio.Future[Any], OnProgress | None]] = {}
        self._closed = False

    async def call(self, method: Method, *arguments: object, on_progress: OnProgress | None = None) -> Any:
        """Return the method's result. Cancelling this cancels it in the engine process. Raises what the method raised,
        and DrainingError if the engine process has ended."""
        if self._closed:
            raise DrainingError
        number = next(self._numbers)
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[number] = done, on_progress
        self._send(Call(number, method, arguments, on_progress is not None))
        try:
            return await done
        except asyncio.CancelledError:
            self._send(Call(number, None))
            raise
        finally:
            del self._calls[number]

    def on_reply(self, reply: Reply) -> None:
        """Process a reply, whose call may have been cancelled."""
        done, on_progress = self._calls.get(reply.number, (None, None))
        if done is None or done.done():
            return
        if reply.progress is not None:
            if on_progress is not None:
                on_progress(reply.progress)
        elif reply.error is None:
            done.set_result(reply.result)
        else:
            done.set_exception(reply.error)

    def close(self) -> None:
        """Fail all calls: the engine process has ended."""
        self._closed = True
        for number in self._calls:
            self.on_reply(Reply(number, error=DrainingError()))


class RpcServer:
    """The engine process's side of one worker's calls. `send` is the channel's."""

    def __init__(self, send: Callable[[object], None], methods: Mapping[Method, Callable[..., Awaitable[Any]]]) -> None:
        self._send = send
        self._methods = methods
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def on_call(self, call: Call) -> None:
        """Start or cancel a call."""
        if call.method is not None:
            task = asyncio.get_running_loop().create_task(self._run(call, self._methods[call.method]))
            self._tasks[call.number] = task
            task.add_done_callback(lambda _: self._tasks.pop(call.number))
        elif call.number in self._tasks:
            self._tasks[call.number].cancel()

    def close(self) -> None:
        """Cancel all calls: the worker has ended."""
        for task in self._tasks.values():
            task.cancel()

    async def _run(self, call: Call, method: Callable[..., Awaitable[Any]]) -> None:
        def on_progress(progress: Progress) -> None:
            self._send(Reply(call.number, progress))

        callbacks = (on_progress,) if call.reports_progress else ()
        try:
            reply = Reply(call.number, result=await method(*call.arguments, *callbacks))
        except GradlessError as error:
            reply = Reply(call.number, error=error)
        except Exception as error:  # noqa: BLE001 - any error is reported to the worker
            # Errors of libraries may not be picklable, and their traceback is useful here only.
            _log.exception("%s failed", call.method)
            reply = Reply(call.number, error=RuntimeError(f"{type(error).__name__}: {error}"))
        self._send(reply)
