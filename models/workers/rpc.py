"""Calls of an HTTP worker that the engine process runs once for the whole service."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gradless.records import Progress
from models.interface.errors import DrainingError, GradlessError

_log = logging.getLogger(__name__)

Method = Literal["load", "unload", "compare", "exposition"]
OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Call:
    """Run a method. With `reports_progress` it gets a callback as its last argument."""

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
    """The worker's side, on its event loop. `send` is the channel's."""

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
            self._calls.pop(number, None)

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
        for number in list(self._calls):
            self.on_message(CallDone(number, None, DrainingError()))


class RpcServer:
    """The engine process's side for one worker. `send` is the channel's."""

    def __init__(self, send: Callable[[object], None], methods: Mapping[Method, Callable[..., Awaitable[Any]]]) -> None:
        self._send = send
        self._methods = methods
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def on_message(self, message: Call | CancelCall) -> None:
        """Start or cancel a call."""
        number = message.number
        if isinstance(message, Call):
            task = self._tasks[number] = asyncio.get_running_loop().create_task(self._run(message))
            task.add_done_callback(lambda _: self._tasks.pop(number, None))
        elif number in self._tasks:
            self._tasks[number].cancel()

    def close(self) -> None:
        """Cancel all calls: the worker has ended."""
        for task in list(self._tasks.values()):
            task.cancel()

    async def _run(self, call: Call) -> None:
        def on_progress(progress: Progress) -> None:
            self._send(CallProgress(call.number, progress))

        try:
            callbacks = (on_progress,) if call.reports_progress else ()
            done = CallDone(call.number, await self._methods[call.method](*call.arguments, *callbacks))
        except GradlessError as error:
            done = CallDone(call.number, None, error)
        except Exception as error:  # noqa: BLE001 - any error is reported to the worker
            # Errors of libraries may not be picklable, and their traceback is useful here only.
            _log.exception("%s failed", call.method)
            done = CallDone(call.number, None, RuntimeError(f"{type(error).__name__}: {error}"))
        self._send(done)
