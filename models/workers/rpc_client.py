"""What a worker has done by the engine process, for the whole service: asked for and answered over the channel."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from gradless.records import Progress
from models.interface.errors import DrainingError
from models.workers.messages import Ask, Heard, LeaveIt, Method, Outcome

OnProgress = Callable[[Progress], None]


def _unheard(_progress: Progress) -> None:
    pass


class RpcClient:
    """Belongs to an event loop. `send` is the channel's."""

    def __init__(self, send: Callable[[object], None]) -> None:
        self._send = send
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[asyncio.Future[Any], OnProgress]] = {}
        self._over = False

    async def ask(self, method: Method, *arguments: object, on_progress: OnProgress = _unheard) -> Any:
        """What comes of it. Cancelling it tells the engine process so. Raises what that raised, and DrainingError when
        it is there no more."""
        if self._over:
            raise DrainingError
        number = next(self._numbers)
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answered, on_progress
        self._send(Ask(number, method, arguments))
        try:
            return await answered
        except asyncio.CancelledError:
            self._send(LeaveIt(number))
            raise
        finally:
            self._waiting.pop(number, None)

    def hear(self, message: Heard | Outcome) -> None:
        """Of what was asked. Nobody may wait for it any more."""
        answered, on_progress = self._waiting.get(message.number, (None, _unheard))
        if isinstance(message, Heard):
            on_progress(message.progress)
        elif answered is not None and not answered.done():
            if message.error is None:
                answered.set_result(message.result)
            else:
                answered.set_exception(message.error)

    def end(self) -> None:
        """The engine process is there no more."""
        self._over = True
        for number in list(self._waiting):
            self.hear(Outcome(number, None, DrainingError()))
