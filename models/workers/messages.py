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
from models.images.transforms import Transform
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
    """Run a method in the engine process. With `reports_progress` it gets a callback as its last argument."""

    number: int
    method: Method
    arguments: tuple[Any, ...]
    reports_progress: bool


@dataclass(frozen=True, slots=True)
class CancelCall:
    """The worker waits for that call no more."""

    number: int


@dataclass(frozen=True, slots=True)
class CallProgress:
    """A call that is running reports its progress."""

    number: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class CallDone:
    """A call has returned a result, or raised an error."""

    number: int
    result: Any
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
            self._send(CancelCall(number))
            raise
        finally:
            del self._calls[number]

    def on_message(self, message: CallProgress | CallDone) -> None:
        """Process a message of the server. Its call may have been cancelled."""
        done, on_progress = self._calls.get(message.number, (None, None))
        if isinstance(message, CallProgress):
            if on_progress is not None:
                on_progress(message.progress)
        elif done is not None and not done.done():
            if message.error is None:
                done.set_result(message.result)
            else:
                done.set_exception(message.error)

    def close(self) -> None:
        """Fail all calls: the engine process has ended."""
        self._closed = True
        for number in self._calls:
            self.on_message(CallDone(number, None, DrainingError()))


class RpcServer:
    """The engine process's side of one worker's calls. `send` is the channel's."""

    def __init__(self, send: Callable[[object], None], methods: Mapping[Method, Callable[..., Awaitable[Any]]]) -> None:
        self._send = send
        self._methods = methods
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def on_message(self, message: Call | CancelCall) -> None:
        """Start or cancel a call."""
        number = message.number
        if isinstance(message, Call):
            task = self._tasks[number] = asyncio.get_running_loop().create_task(self._run(message))
            task.add_done_callback(lambda _: self._tasks.pop(number))
        elif number in self._tasks:
            self._tasks[number].cancel()

    def close(self) -> None:
        """Cancel all calls: the worker has ended."""
        for task in self._tasks.values():
            task.cancel()

    async def _run(self, call: Call) -> None:
        def on_progress(progress: Progress) -> None:
            self._send(CallProgress(call.number, progress))

        callbacks = (on_progress,) if call.reports_progress else ()
        try:
            done = CallDone(call.number, await self._methods[call.method](*call.arguments, *callbacks))
        except GradlessError as error:
            done = CallDone(call.number, None, error)
        except Exception as error:  # noqa: BLE001 - any error is reported to the worker
            # Errors of libraries may not be picklable, and their traceback is useful here only.
            _log.exception("%s failed", call.method)
            done = CallDone(call.number, None, RuntimeError(f"{type(error).__name__}: {error}"))
        self._send(done)
