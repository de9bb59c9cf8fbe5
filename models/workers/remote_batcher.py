"""A model's queue as a worker sees it: it is in another process."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from models.inference.batch_item import BatchItem, ItemOutput
from models.interface.errors import OverloadedError
from models.scheduling.batcher import Completed
from models.workers.shared_slots import SharedSlots
from models.workers.wire_format import Answers, Submission, submission


class _Awaited(Future[Completed[ItemOutput]]):
    """Cancelling it is said in its slot, for the engine process to see."""

    def __init__(self, slots: SharedSlots, slot: int, generation: int) -> None:
        super().__init__()
        self._slots = slots
        self._slot = slot
        self._generation = generation

    def cancel(self) -> bool:
        return not self.done() and self._slots.abandon(self._slot, self._generation) and super().cancel()


class RemoteBatcher:
    """Of one version of a model. `submit` is for any thread, all else for the event loop. `on_stale` is
    called with the slot and the generation of each answer for which no image waits."""

    def __init__(
        self, version: int, slots: SharedSlots, worker: int, desk: socket.socket, on_stale: Callable[[int, int], None]
    ) -> None:
        self._version = version
        self._slots = slots
        self._desk = desk
        self._on_stale = on_stale
        # Those that were used last are taken first, so that no more memory is touched than images are inside at once.
        self._free = list(slots.of_worker(worker))
        # By slot and generation.
        self._waiting: dict[tuple[int, int], _Awaited] = {}
        self._refusal: Callable[[], Exception] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing of this worker is in the house."""
        return not self._waiting

    def expected_seconds(self, items: int) -> float:
        """How long the device needs for that many items; 0 before its first batch."""
        return items * self._slots.pace

    def submit(self, item: BatchItem) -> Future[Completed[ItemOutput]]:
        """Queue one item, as Batcher.submit does. Raises OverloadedError when no slot is free, and
        what `abandon` was given."""
        try:
            slot = self._free.pop()
        except IndexError:
            each = self._slots.shape.each
            raise OverloadedError(each, self.expected_seconds(each)) from None
        generation = self._slots.claim(slot)
        try:
            # What was decoded lies as the slot does, so this is one copy.
            self._slots.pixels(slot).copy_(item.image)
        except BaseException:
            self._free.append(slot)
            raise
        future = self._waiting[slot, generation] = _Awaited(self._slots, slot, generation)
        if self._refusal is None:
            submitted = Submission(self._version, slot, generation, item.request)
            # Whose other end is gone hears of that on the event loop, and fails all who wait.
            with suppress(OSError):
                self._desk.send(submission(submitted))
        if self._refusal is not None:
            # Said before or after this one was put among those that wait: it may have been overlooked.
            self._fail(slot, generation, self._refusal())
        return future

    def answered(self, answers: Answers) -> None:
        """They are in their slots."""
        for slot, classes, generation, queue_seconds, finite in answers.answers:
            if (slot, generation) not in self._waiting:
                self._on_stale(slot, generation)
                continue
            output = self._slots.read(slot, classes, finite=finite)
            future = self._release(slot, generation)
            if future is not None and future.set_running_or_notify_cancel():
                future.set_result(Completed(output, queue_seconds, answers.batch))

    def failed(self, slot: int, generation: int, error: Exception | None) -> None:
        """There is no answer for the image of that generation in that slot."""
        if (slot, generation) in self._waiting:
            self._fail(slot, generation, error)
        else:
            self._on_stale(slot, generation)

    def abandon(self, error: Callable[[], Exception]) -> None:
        """Nobody will answer: give everybody who waits, or comes, an error of his own."""
        self._refusal = error
        for slot, generation in list(self._waiting):
            self._fail(slot, generation, error())

    def _fail(self, slot: int, generation: int, error: Exception | None) -> None:
        future = self._release(slot, generation)
        if future is not None and error is not None and future.set_running_or_notify_cancel():
            future.set_exception(error)

    def _release(self, slot: int, generation: int) -> _Awaited | None:
        """The future of an image whose slot is free from here on; None where another thread was faster."""
        future = self._waiting.pop((slot, generation), None)
        if future is not None:
            self._free.append(slot)
        return future
