"""A model's queue as a front sees it: it is in another process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from models.batching import Completed
from models.errors import OverloadedError
from models.fronts.records import Answers, submission
from models.fronts.slots import Slots
from models.items import Item, Output


class _Awaited(Future[Completed[Output]]):
    """Cancelling it is said in its slot, for the engine process to see."""

    def __init__(self, slots: Slots, slot: int) -> None:
        super().__init__()
        self._slots = slots
        self._slot = slot
        # While it is held the slot is this image's.
        self._lock = threading.Lock()
        self._let_go = False

    def cancel(self) -> bool:
        with self._lock:
            in_time = not self._let_go and self._slots.abandon(self._slot)
        return in_time and super().cancel()

    def let_go(self) -> None:
        """From here on its slot may be another image's."""
        with self._lock:
            self._let_go = True


class RemoteBatcher:
    """Of one version of a model. `submit` is for any thread, all else for the event loop."""

    def __init__(self, version: int, slots: Slots, front: int, desk: socket.socket) -> None:
        self._version = version
        self._slots = slots
        self._desk = desk
        # Those that were used last are taken first, so that no more memory is touched than images are inside at once.
        self._free = list(slots.of_front(front))
        self._waiting: dict[int, _Awaited] = {}
        self._refusal: Callable[[], Exception] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing of this front is in the house."""
        return not self._waiting

    def expected_seconds(self, items: int) -> float:
        """How long the device needs for that many items; 0 before its first batch."""
        return items * self._slots.pace

    def submit(self, item: Item, *, caller: int) -> Future[Completed[Output]]:
        """Queue one item, as Batcher.submit does. `caller`: a number from 0 to 2**64 - 1 that only the items of one
        request have. Raises OverloadedError when no slot is free, and what `abandon` was given."""
        try:
            slot = self._free.pop()
        except IndexError:
            each = self._slots.shape.each
            raise OverloadedError(each, self.expected_seconds(each)) from None
        self._slots.begin_anew(slot)
        # What was decoded lies as the slot does, so this is one copy.
        self._slots.pixels(slot).copy_(item.image)
        future = _Awaited(self._slots, slot)
        self._waiting[slot] = future
        if self._refusal is None:
            # Whose other end is gone hears of that on the event loop, and fails all who wait.
            with suppress(OSError):
                self._desk.send(submission(self._version, slot, item.top_k, caller))
        if self._refusal is not None:
            # Said before or after this one was put among those that wait: it may have been overlooked.
            self.failed(slot, self._refusal())
        return future

    def answered(self, answers: Answers) -> None:
        """They are in their slots."""
        for slot, classes, finite, queue_seconds in answers.answers:
            output = self._slots.read(slot, classes, finite=finite)
            future = self._done_with(slot)
            if future is not None and future.set_running_or_notify_cancel():
                future.set_result(Completed(output, queue_seconds, answers.batch))

    def failed(self, slot: int, error: Exception | None) -> None:
        """There is no answer for the image in that slot."""
        future = self._done_with(slot)
        if future is not None and error is not None and future.set_running_or_notify_cancel():
            future.set_exception(error)

    def abandon(self, error: Callable[[], Exception]) -> None:
        """Nobody will answer: give everybody who waits, or comes, an error of his own."""
        self._refusal = error
        for slot in list(self._waiting):
            self.failed(slot, error())

    def _done_with(self, slot: int) -> _Awaited | None:
        future = self._waiting.pop(slot, None)
        if future is not None:
            future.let_go()
            self._free.append(slot)
        return future
