"""Images on their way through shared slots: `RemoteBatcher` submits them in an HTTP worker, and `ImageReceiver` queues
and answers them in the engine process."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from models.inference.image_job import BatchItem, ItemOutput, LocalQueue
from models.interface.errors import ModelGoneError, OverloadedError
from models.interface.request import InferenceRequest
from models.interface.telemetry import BatchReport, StaleMessage
from models.scheduling.batcher import Completed
from models.workers.messages import Answered, Answers, Submission
from models.workers.shared_slots import SharedSlots, SlotCancelToken

_log = logging.getLogger(__name__)


class _RemoteFuture(Future[Completed[ItemOutput]]):
    """The answer of an image. Cancelling it sets the flag in its slot, which the engine process sees."""

    def __init__(self, token: SlotCancelToken, *, all_probabilities: bool) -> None:
        super().__init__()
        self._token = token
        self.all_probabilities = all_probabilities

    def cancel(self) -> bool:
        if self.done():
            return False
        self._token.cancel()
        return not self._token.started and super().cancel()


class RemoteBatcher:
    """The batcher of one version of a model, as a worker's pipeline sees it. Event loop only, except `submit`. `send`
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
        token = SlotCancelToken(self._slots, slot, generation)
        future = _RemoteFuture(token, all_probabilities=item.request.all_probabilities)
        self._waiting[slot, generation] = future
        if self._refusal is None:
            self._send((self._version, slot, generation, item.request.parameters))
        # Read again: `abandon` may have run before this image was in `_waiting`.
        if self._refusal is not None:
            self._fail(slot, generation, self._refusal())
        return future

    def on_answers(self, answers: Answers) -> None:
        """Give each image its answer, which is in its slot, or its error."""
        for slot, generation, result in answers.results:
            waiting = self._waiting.get((slot, generation))
            if waiting is None:
                self._on_stale(slot, generation)
            elif not isinstance(result, tuple):
                self._fail(slot, generation, result)
            elif answers.batch is not None:
                classes, queue_seconds, finite = result
                output = self._slots.read(slot, classes, finite=finite, all_probabilities=waiting.all_probabilities)
                future = self._release(slot, generation)
                if future is not None and future.set_running_or_notify_cancel():
                    future.set_result(Completed(output, queue_seconds, answers.batch))

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


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """One load of a model. `received` has the generation of each slot's last image that was received."""

    number: int
    name: str
    descriptor: int
    slots: SharedSlots
    queue: LocalQueue
    received: dict[int, int] = field(default_factory=dict)


class _SlotFuture(Future[Completed[ItemOutput]]):
    """An image's entry in the batcher's queue. Its slot says whether the worker has cancelled it, and tells the worker
    that its forward has started."""

    def __init__(self, token: SlotCancelToken) -> None:
        super().__init__()
        self._token = token

    def set_running_or_notify_cancel(self) -> bool:
        # The batcher calls this under its lock. It cancels the future later, without the lock: callbacks send.
        running = not self._token.cancelled and super().set_running_or_notify_cancel()
        if running:
            self._token.start()
        return running


class _Finished(threading.local):
    """Results that a batch thread sends when its batch is done, by worker and version."""

    def __init__(self) -> None:
        self.results: defaultdict[tuple[int, int], list[tuple[int, int, Answered]]] = defaultdict(list)


class ImageReceiver:
    """Belongs to the event loop, unless a method names other threads. `send` sends answers to the worker of a number,
    from any thread. `on_stale` is called for each dropped message."""

    def __init__(self, send: Callable[[int, Answers], None], on_stale: Callable[[StaleMessage], None]) -> None:
        self._send_to = send
        self._on_stale = on_stale
        # Versions with slots, by number.
        self.versions: dict[int, Version] = {}
        # Names of all versions, removed ones included.
        self._names: dict[int, str] = {}
        # Version, slot and generation of each image received and not answered, by worker number. Any thread removes
        # its own.
        self._in_flight: defaultdict[int, set[tuple[int, int, int]]] = defaultdict(set)
        self._finished = _Finished()

    def add_version(self, version: Version) -> None:
        """Receive images for a version. From any thread."""
        self._names[version.number] = version.name
        self.versions[version.number] = version

    def cancel_all(self, worker: int) -> None:
        """Cancel all images of a worker that is lost."""
        for version in list(self.versions.values()):
            for slot in version.slots.of_worker(worker):
                SlotCancelToken(version.slots, slot, version.slots.generation(slot)).cancel()
            version.slots.set_in_flight(worker, 0)

    def in_flight(self, worker: int) -> bool:
        """Whether images in the slots of a worker are in the queue or in a forward, also if the worker is lost."""
        return bool(self._in_flight[worker])

    def receive(self, worker: int, submission: Submission) -> None:
        """Queue an image of a worker. Raises if the worker cannot have sent the message."""
        number, slot, generation, parameters = submission
        version = self.versions.get(number)
        if version is None:
            self._fail(worker, number, slot, generation, ModelGoneError(self._names[number]))
            return
        slots = version.slots
        if slot not in slots.of_worker(worker):
            raise ValueError(f"slot {slot} does not belong to HTTP worker {worker}")
        if generation != slots.generation(slot) or generation <= version.received.get(slot, 0):
            self._drop("submission", worker, slot, generation)
            return
        version.received[slot] = generation
        self._in_flight[worker].add((number, slot, generation))
        token = SlotCancelToken(slots, slot, generation)
        future = _SlotFuture(token)
        future.add_done_callback(partial(self._on_done, version, worker, slot, generation))
        item = BatchItem(slots.pixels(slot), InferenceRequest.received(parameters, worker, token))
        try:
            version.queue.submit(item, future=future)
        except Exception as error:  # noqa: BLE001 - any error is the image's answer
            self._fail(worker, number, slot, generation, error)

    def batch_over(self, report: BatchReport) -> None:
        """Send the answers of the batch that this thread has just run. For the batch threads."""
        results, self._finished.results = self._finished.results, defaultdict(list)
        for (worker, version), of_worker in results.items():
            self._send(worker, Answers(version, report, of_worker))

    def _on_done(
        self, version: Version, worker: int, slot: int, generation: int, done: Future[Completed[ItemOutput]]
    ) -> None:
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or error is not None:
            self._fail(worker, version.number, slot, generation, error if isinstance(error, Exception) else None)
            return
        if version.slots.generation(slot) != generation:
            # The answer would overwrite the slot's next image.
            self._drop("answer", worker, slot, generation)
            self._in_flight[worker].discard((version.number, slot, generation))
            return
        completed = done.result()
        output = completed.result
        version.slots.write(slot, output)
        version.slots.seconds_per_image = version.queue.expected_seconds(1)
        answered = len(output.indices), completed.queue_seconds, output.finite
        self._finished.results[worker, version.number].append((slot, generation, answered))

    def _fail(self, worker: int, version: int, slot: int, generation: int, error: Exception | None) -> None:
        self._send(worker, Answers(version, None, [(slot, generation, error)]))

    def _drop(self, message: StaleMessage, worker: int, slot: int, generation: int) -> None:
        _log.warning("dropped a stale %s of HTTP worker %d: slot %d, generation %d", message, worker, slot, generation)
        self._on_stale(message)

    def _send(self, worker: int, answers: Answers) -> None:
        self._send_to(worker, answers)
        # Last: from here on a replacement of the worker may use the slots.
        images = ((answers.version, slot, generation) for slot, generation, _ in answers.results)
        self._in_flight[worker].difference_update(images)
