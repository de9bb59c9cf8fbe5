"""Callers of every kind at once: good, bad, large, leaving, debugging, and a scraper."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from reliability.ledger import Ledger
from reliability.pictures import Pictures
from reliability.serving import DEFAULT_MODEL, NULL_MODEL
from reliability.wire import CLASSIFY, FEATURES, LENS, METRICS, Connection, Place, Request, get, multipart, post

_IMAGES_OF_LEAVING = 12


class Crowd:
    """All of them on one server."""

    def __init__(self, place: Place, pictures: Pictures, ledger: Ledger) -> None:
        self._place = place
        self._ledger = ledger
        null = f"{CLASSIFY}?model={NULL_MODEL}"
        good, bad = pictures.clock, (pictures.truncated, b"", b"this is no image", pictures.vast)
        self._fast = [post(null, pictures.small), post(f"{FEATURES}?model={NULL_MODEL}&encoding=base64", good)]
        self._good = [post(CLASSIFY, good), post(f"{FEATURES}?normalize=true", good)]
        self._several = [multipart(f"{CLASSIFY}?top_k=1", [good, pictures.truncated, good, b"", pictures.small])]
        # Refused by its parameter, before an image is looked at.
        unknown = post(f"{CLASSIFY}?model=no-such-model", pictures.small, images=0)
        self._bad = [*(post(path, image) for path in (CLASSIFY, null) for image in bad), unknown]
        self._large = [post(CLASSIFY, pictures.photograph), post(null, pictures.photograph), post(null, pictures.noise)]
        # Work for the slower model, so that nobody has an answer before he has gone.
        self._left = multipart(CLASSIFY, [good] * _IMAGES_OF_LEAVING)
        self._begun = post(CLASSIFY, good)
        self._lens = [post(f"{LENS}?model={DEFAULT_MODEL}&batch_size=1&iterations=1", images=0)]
        self._scrape = [get(METRICS)]

    async def one_of_each(self) -> None:
        """Whatever is made on first use is there afterwards."""
        for requests in (self._fast, self._good, self._several, self._bad, self._large, self._lens, self._scrape):
            async with Connection(self._place) as connection:
                for request in requests:
                    await self._exchange(connection, request)
        await self._leave_within_body()
        await self._leave_after_body()

    async def compare(self) -> None:
        """The lens alone, which gives memory back that is free."""
        async with Connection(self._place) as connection:
            await self._exchange(connection, self._lens[0])

    async def send_until(self, moment: float) -> None:
        """Until the loop's clock says `moment`; every request has ended then."""
        async with asyncio.TaskGroup() as callers:
            for requests, pause_s in (
                (self._fast, 0.02),
                (self._fast, 0.02),
                (self._good, 0.02),
                (self._good, 0.02),
                (self._several, 0.5),
                (self._bad, 0.1),
                (self._large, 1.0),
                (self._lens, 10.0),
                (self._scrape, 1.0),
            ):
                callers.create_task(self._one_after_another(requests, pause_s, moment))
            for leave, pause_s in ((self._leave_within_body, 0.2), (self._leave_after_body, 0.5)):
                callers.create_task(_repeat(leave, pause_s, moment))

    async def _one_after_another(self, requests: Sequence[Request], pause_s: float, moment: float) -> None:
        turn = 0

        async def next_one() -> None:
            nonlocal turn
            await self._exchange(connection, requests[turn % len(requests)])
            turn += 1

        async with Connection(self._place) as connection:
            await _repeat(next_one, pause_s, moment)

    async def _exchange(self, connection: Connection, request: Request) -> None:
        self._ledger.sent[request.route] += 1
        try:
            answer = await connection.answer_to(request)
        except (OSError, EOFError) as error:
            self._ledger.broken[type(error).__name__] += 1
            await connection.leave()
        else:
            self._ledger.saw(request, answer)

    async def _leave_within_body(self) -> None:
        async with Connection(self._place) as connection:
            self._ledger.sent[self._begun.route] += 1
            await connection.send(self._begun.wire[: -len(self._begun.wire) // 2])
        self._ledger.left_within_body(self._begun)

    async def _leave_after_body(self) -> None:
        async with Connection(self._place) as connection:
            self._ledger.sent[self._left.route] += 1
            await connection.send(self._left.wire)
        self._ledger.left_after_body(self._left)


async def _repeat(act: Callable[[], Awaitable[None]], pause_s: float, moment: float) -> None:
    loop = asyncio.get_running_loop()
    while loop.time() < moment:
        await act()
        await asyncio.sleep(pause_s)
