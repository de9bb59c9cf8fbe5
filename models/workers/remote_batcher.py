"""The batcher of a model as an HTTP worker's pipeline sees it. The real one is in the engine process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from models.inference.image_job import BatchItem, ItemOutput
from models.interface.errors import OverloadedError
from models.interface.request import NEVER_CANCELLED
from models.scheduling.batcher import Completed
from models.workers.messages import Answers, Failure, Submission
from models.workers.shared_slots import SharedSlots


class _RemoteFuture(Future[Completed[ItemOutput]]):
    """The answer of an image. Cancelling it sets the flag in its slot, which the engine process sees."""

    def __init__(self, slots: SharedSlots, slot: int, generation: int) -> None:
        super().__init__()
        self._slots = slots
        self._slot = slot
        self._generation = generation

    def cancel(self) -> bool:
        return not self.done() and self._slots.cancel(self._slot, self._generation) and super().cancel()


class RemoteBatcher:
    """The batcher of one version of a model. `submit` may be called from any thread, all else on the event loop. `send`
    sends to the engine process. `on_stale` gets slot and generation of each answer that no image waits for."""

    def __init__(
        self,
        version: int,
        slots: SharedSlots,
        worker: int,
        send: Callable[[object], None],
        on_stale: Callable[[int, int], None],
    ) -> None:
        self._version = version
        self._slots = slots
        self._send = send
        self._on_stale = on_stale
        # The slot used last is taken first, so that little memory is touched.
        self._free = list(slots.of_worker(worker))
        # By slot and generation.
        self._waiting: dict[tuple[int, int], _RemoteFuture] = {}
        self._refusal: Callable[[], Exception] | None = None

    @property
    def idle(self) -> bool:
        """Whether the engine process has no image of this worker and version."""
        return not self._waiting

    def expected_seconds(self, items: int) -> float:
        """Return the forward time of that many items; 0 before the first batch."""
        return items * self._slots.seconds_per_image

    def submit(self, item: BatchItem) -> Future[Completed[ItemOutput]]:
        """Queue one item, as Batcher.submit does. Raises OverloadedError if no slot is free."""
        try:
            slot = self._free.pop()
        except IndexError:
            each = self._slots.shape.each
            raise OverloadedError(each, self.expected_seconds(each)) from None
        generation = self._slots.claim(slot)
        try:
            # Both have channels last in memory, so this is one plain copy.
            self._slots.pixels(slot).copy_(item.image)
        except BaseException:
            self._free.append(slot)
            raise
        future = self._waiting[slot, generation] = _RemoteFuture(self._slots, slot, generation)
        if self._refusal is None:
            request = replace(item.request, cancel_token=NEVER_CANCELLED)
            self._send(Submission(self._version, slot, generation, request))
        # Read again: `abandon` may have run before this image was in `_waiting`.
        if self._refusal is not None:
            self._fail(slot, generation, self._refusal())
        return future

    def on_answers(self, answers: Answers) -> None:
        """Give the answers, which are in their slots, to the images that wait for them."""
        for slot, classes, generation, queue_seconds, finite in answers.answers:
            if (slot, generation) not in self._waiting:
                self._on_stale(slot, generation)
                continue
            output = self._slots.read(slot, classes, finite=finite)
            future = self._release(slot, generation)
            if future is not None and future.set_running_or_notify_cancel():
                future.set_result(Completed(output, queue_seconds, answers.batch))

    def on_failure(self, failure: Failure) -> None:
        """Give an image its error."""
        slot, generation = failure.slot, failure.generation
        if (slot, generation) in self._waiting:
            self._fail(slot, generation, failure.error)
        else:
            self._on_stale(slot, generation)

    def abandon(self, error: Callable[[], Exception]) -> None:
        """Fail all images, those waiting and later ones, each with an error of its own."""
        self._refusal = error
        for slot, generation in list(self._waiting):
            self._fail(slot, generation, error())

    def _fail(self, slot: int, generation: int, error: Exception | None) -> None:
        future = self._release(slot, generation)
        if future is not None and error is not None and future.set_running_or_notify_cancel():
            future.set_exception(error)

    def _release(self, slot: int, generation: int) -> _RemoteFuture | None:
        """Free a slot and return its image's future; None if another thread has done so."""
        future = self._waiting.pop((slot, generation), None)
        if future is not None:
            self._free.append(slot)
        return future
