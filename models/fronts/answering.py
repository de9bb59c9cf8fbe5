"""What fronts ask for, done in the engine process, once for the whole service."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from models.comparison import Progress
from models.errors import GradlessError
from models.fronts.channel import Channel
from models.fronts.messages import Ask, Heard, LeaveIt, Outcome, Scrape, Scraped
from models.serving import Serving
from models.shared_work import SharedWork

_log = logging.getLogger(__name__)

# A front that does not tell its metrics in that time is missing from them.
_SCRAPE_S = 5.0


class Scrapes:
    """The metrics of all processes: `own` gives this one's, from any thread, `channels` are those of the fronts, by
    their numbers."""

    def __init__(self, own: Callable[[str], str], channels: Callable[[], Mapping[int, Channel]]) -> None:
        self._own = own
        self._channels = channels
        self._shared: SharedWork[str, list[str]] = SharedWork()
        self._numbers = itertools.count()
        self._waiting: dict[int, dict[int, asyncio.Future[str]]] = {}

    async def all(self, accept: str, max_age_s: float) -> list[str]:
        """This process's, then those of the fronts that tell them in time: collected now, or for another front at most
        so long ago."""
        return await self._shared.result(accept, partial(self._collected, accept), max_age_s=max_age_s)

    async def _collected(self, accept: str) -> list[str]:
        number = next(self._numbers)
        loop = asyncio.get_running_loop()
        channels = self._channels()
        self._waiting[number] = told = {front: loop.create_future() for front in channels}
        try:
            for channel in channels.values():
                channel.send(Scrape(number, accept))
            own = await asyncio.to_thread(self._own, accept)
            if told:
                await asyncio.wait(told.values(), timeout=_SCRAPE_S)
        finally:
            del self._waiting[number]
        silent = [front for front, exposition in told.items() if not exposition.done()]
        if silent:
            _log.warning("fronts %s have not told their metrics", silent)
        return [own, *(each.result() for each in told.values() if each.done() and not each.cancelled())]

    def hear(self, front: int, scraped: Scraped) -> None:
        """A front's."""
        waiting = self._waiting.get(scraped.number, {}).get(front)
        if waiting is not None and not waiting.done():
            waiting.set_result(scraped.exposition)

    def forget(self, front: int) -> None:
        """It has gone: nobody waits for it."""
        for told in self._waiting.values():
            if front in told:
                told[front].cancel()


class Answering:
    """What one front asks for. `agreed` waits until all fronts go by what is served."""

    def __init__(
        self, channel: Channel, serving: Serving, scrapes: Scrapes, agreed: Callable[[], Awaitable[None]]
    ) -> None:
        self._channel = channel
        self._serving = serving
        self._scrapes = scrapes
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
        """The front has gone: nobody waits for anything."""
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
            case "expositions":
                return await self._scrapes.all(*ask.arguments)
