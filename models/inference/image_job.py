"""One image between three threads: the event loop that waits for it, the decode pool, and the batcher."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from time import perf_counter
from typing import Protocol

from models.inference.batch_item import BatchItem, ItemOutput
from models.interface.cancellation import AllCancelledError, Wanted, always
from models.interface.telemetry import Stage
from models.scheduling.batcher import Completed
from models.scheduling.loop_mailbox import LoopMailbox


class Queue(Protocol):
    """The near side of a batcher, whichever process has its far one. Described at models.scheduling.batcher.Batcher."""

    def submit(self, item: BatchItem, *, caller: int) -> Future[Completed[ItemOutput]]: ...

    def expected_seconds(self, items: int) -> float: ...


class ImageJob:
    """The event loop waits until it is `settled` and may abandon it, the decode pool queues it, the batcher answers.

    `outcome` is what came of it: no exception is raised on the way, which would tie the request's images to it.
    """

    def __init__(self, encoded: bytes, top_k: int, caller: int, inbox: LoopMailbox, wanted: Wanted = always) -> None:
        self._encoded = encoded
        self.top_k = top_k
        self.started_at = perf_counter()
        self.decode_seconds = 0.0
        self.settled: asyncio.Future[None] = inbox.loop.create_future()
        self.outcome: Completed[ItemOutput] | BaseException | None = None
        self.abandoned = False
        self._caller = caller
        self._wanted = wanted
        self._inbox = inbox
        self._queued: Future[Completed[ItemOutput]] | None = None

    def wanted(self) -> bool:
        """Whether somebody waits for it. From any thread."""
        return not self.abandoned and self._wanted()

    def take_encoded(self) -> bytes:
        """The file, once: what waits in the queue needs it no more."""
        encoded, self._encoded = self._encoded, b""
        return encoded

    def queue(self, batcher: Queue, item: BatchItem) -> None:
        """Hand the item to the batcher. Raises OverloadedError, DrainingError."""
        queued = self._queued = batcher.submit(item, caller=self._caller)
        queued.add_done_callback(self._hear)
        if self.abandoned:
            queued.cancel()
            self._queued = None

    def fail(self, error: Exception) -> None:
        """Answer with an error, from any thread."""
        self._inbox.post(lambda: self._settle(error))

    def abandon(self) -> Stage:
        """Nobody waits any more: give the item up unless its forward has begun. Returns the stage it was in.

        The flag is raised before the future is looked for, and the pool looks for the flag after it has made the
        future: one of them finds the other.
        """
        self.abandoned = True
        self.settled.cancel()
        queued, self._queued = self._queued, None
        if queued is None:
            return "decode"
        queued.cancel()
        return "queue" if queued.cancelled() else "forward"

    def _hear(self, queued: Future[Completed[ItemOutput]]) -> None:
        # Where the forward was given up, the loop will hear of the departure and abandon this.
        if not queued.cancelled() and not isinstance(queued.exception(), AllCancelledError):
            self._inbox.post(lambda: self._settle(queued.exception() or queued.result()))

    def _settle(self, outcome: Completed[ItemOutput] | BaseException) -> None:
        # It knows this passage. A ring of the two would keep the answer until the garbage collector comes.
        self._queued = None
        # Cancelled: nobody waits any more.
        if not self.settled.done():
            self.outcome = outcome
            self.settled.set_result(None)
