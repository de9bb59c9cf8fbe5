"""Clients of every kind at once: good, bad, large, disconnecting, debugging, and a scraper."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from reliability.ledger import Ledger
from reliability.pictures import Pictures
from reliability.serving import DEFAULT_MODEL, NULL_MODEL
from reliability.wire import CLASSIFY, FEATURES, LENS, METRICS, Address, Connection, Request, get, multipart, post

_IMAGES_PER_DISCONNECT = 12


class Crowd:
    """All kinds of clients of one server."""

    def __init__(self, address: Address, pictures: Pictures, ledger: Ledger) -> None:
        self._address = address
        self._ledger = ledger
        null = f"{CLASSIFY}?model={NULL_MODEL}"
        good, bad = pictures.clock, (pictures.truncated, b"", b"this is no image", pictures.vast)
        self._fast = [post(null, pictures.small), post(f"{FEATURES}?model={NULL_MODEL}&encoding=base64", good)]
        self._good = [post(CLASSIFY, good), post(f"{FEATURES}?normalize=true", good)]
        self._several = [multipart(f"{CLASSIFY}?top_k=1", [good, pictures.truncated, good, b"", pictures.small])]
        # Refused by its parameter, before any image is decoded.
        unknown = post(f"{CLASSIFY}?model=no-such-model", pictures.small, images=0)
        self._bad = [*(post(path, image) for path in (CLASSIFY, null) for image in bad), unknown]
        self._large = [post(CLASSIFY, pictures.photograph), post(null, pictures.photograph), post(null, pictures.noise)]
        # Many images for the slower model, so that no answer is ready before the disconnect.
        self._complete_body = multipart(CLASSIFY, [good] * _IMAGES_PER_DISCONNECT)
        self._partial_body = post(CLASSIFY, good)
        self._lens = [post(f"{LENS}?model={DEFAULT_MODEL}&batch_size=1&iterations=1", images=0)]
        self._scrape = [get(METRICS)]

    async def one_of_each(self) -> None:
        """Send one request of each kind, so that everything made on first use exists."""
        for requests in (self._fast, self._good, self._several, self._bad, self._large, self._lens, self._scrape):
            async with Connection(self._address) as connection:
                for request in requests:
                    await self._ledger.call(connection, request)
        await self._disconnect_within_body()
        await self._disconnect_after_body()

    async def compare(self) -> None:
        """Run one comparison of the lens, which releases free memory."""
        async with Connection(self._address) as connection:
            await self._ledger.call(connection, self._lens[0])

    async def send_until(self, moment: float) -> None:
        """Run all clients until the loop's time is `moment` and every request has ended."""
        async with asyncio.TaskGroup() as clients:
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
                clients.create_task(self._one_after_another(requests, pause_s, moment))
            for disconnect, pause_s in ((self._disconnect_within_body, 0.2), (self._disconnect_after_body, 0.5)):
                clients.create_task(_repeat(disconnect, pause_s, moment))

    async def _one_after_another(self, requests: Sequence[Request], pause_s: float, moment: float) -> None:
        sent = 0

        async def next_one() -> None:
            nonlocal sent
            await self._ledger.call(connection, requests[sent % len(requests)])
            sent += 1

        async with Connection(self._address) as connection:
            await _repeat(next_one, pause_s, moment)

    async def _disconnect_within_body(self) -> None:
        async with Connection(self._address) as connection:
            self._ledger.sent[self._partial_body.route] += 1
            await connection.send(self._partial_body.wire[: -len(self._partial_body.wire) // 2])
        self._ledger.disconnected_within_body(self._partial_body)

    async def _disconnect_after_body(self) -> None:
        async with Connection(self._address) as connection:
            self._ledger.sent[self._complete_body.route] += 1
            await connection.send(self._complete_body.wire)
        self._ledger.disconnected_after_body(self._complete_body)


async def _repeat(act: Callable[[], Awaitable[None]], pause_s: float, moment: float) -> None:
    loop = asyncio.get_running_loop()
    while loop.time() < moment:
        await act()
        await asyncio.sleep(pause_s)
