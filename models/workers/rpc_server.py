"""What workers ask for, done in the engine process, once for the whole service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from gradless.records import Progress
from models.interface.errors import GradlessError
from models.serving.runtime import LocalRuntime
from models.workers.channel import Channel
from models.workers.messages import Ask, Heard, LeaveIt, Outcome

_log = logging.getLogger(__name__)


class RpcServer:
    """What one worker asks for. `exposition` gives the service's metrics in the format that an Accept header asks for,
    as of now or at most so many seconds ago. `agreed` waits until all workers go by what is served."""

    def __init__(
        self,
        channel: Channel,
        serving: LocalRuntime,
        exposition: Callable[[str, float], Awaitable[str]],
        agreed: Callable[[], Awaitable[None]],
    ) -> None:
        self._channel = channel
        self._serving = serving
        self._exposition = exposition
        self._agreed = agreed
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def hear(self, message: Ask | LeaveIt) -> None:
        """Begin with what is asked for, or leave it."""
        number = message.number
        if isinstance(message, Ask):
            task = self._tasks[number] = asyncio.get_running_loop().create_task(self._answer(message))
            task.add_done_callback(lambda _: self._tasks.pop(number, None))
        elif number in self._tasks:
            self._tasks[number].cancel()

    def end(self) -> None:
        """The worker has gone: nobody waits for anything."""
        for task in list(self._tasks.values()):
            task.cancel()

    async def _answer(self, ask: Ask) -> None:
        try:
            outcome = Outcome(ask.number, await self._done(ask))
        except GradlessError as error:
            outcome = Outcome(ask.number, None, error)
        except Exception as error:  # noqa: BLE001 - whatever it was, the asker hears
            # What others raise need not be fit to travel, and here is its traceback.
            _log.exception("%s failed", ask.method)
            outcome = Outcome(ask.number, None, RuntimeError(f"{type(error).__name__}: {error}"))
        self._channel.send(outcome)

    async def _done(self, ask: Ask) -> Any:
        match ask.method:
            case "compare":

                def on_progress(progress: Progress) -> None:
                    self._channel.send(Heard(ask.number, progress))

                model, options, image = ask.arguments
                return await self._serving.compare(model, options, image, on_progress)
            case "load":
                loaded = await self._serving.load(*ask.arguments)
                await self._agreed()
                return loaded
            case "unload":
                return await self._serving.unload(*ask.arguments)
            case "exposition":
                return await self._exposition(*ask.arguments)
