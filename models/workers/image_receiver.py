"""Images of the HTTP workers, in the engine process: they are queued on the event loop, and the batch threads send the
answers."""

from __future__ import annotations

import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial

from models.inference.image_job import BatchItem, ItemOutput
from models.interface.errors import ModelGoneError
from models.interface.telemetry import BatchReport, StaleMessage
from models.scheduling.batcher import Batcher, Completed
from models.workers.messages import Answered, Answers, Failure, Submission
from models.workers.shared_slots import SharedSlots, SlotCancelToken

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """One load of a model, with a number of its own. `received` has the generation of each slot's last image that was
    received."""

    number: int
    name: str
    descriptor: int
    slots: SharedSlots
    batcher: Batcher[BatchItem, ItemOutput]
    received: dict[int, int] = field(default_factory=dict)


class SlotFuture(Future[Completed[ItemOutput]]):
    """An image's entry in the batcher's queue. Its slot says whether the worker has cancelled it, and tells the worker
    that its forward has started."""

    def __init__(self, slots: SharedSlots, slot: int, generation: int) -> None:
        super().__init__()
        self._slots = slots
        self._slot = slot
        self._generation = generation
        self.cancel_token = SlotCancelToken(slots, slot, generation)

    def set_running_or_notify_cancel(self) -> bool:
        # The batcher calls this under its lock. It cancels the future later, without the lock: callbacks send.
        if self.cancel_token.cancelled:
            return False
        running = super().set_running_or_notify_cancel()
        if running:
            self._slots.start(self._slot, self._generation)
        return running


class ImageReceiver:
    """Belongs to the event loop, unless a method names other threads. `on_stale` is called for each dropped message."""

    def __init__(self, on_stale: Callable[[StaleMessage], None]) -> None:
        self._on_stale = on_stale
        self._versions: dict[int, Version] = {}
        # Names of all versions, removed ones included.
        self._names: dict[int, str] = {}
        # How to send to each worker, by its number. Any thread sends.
        self._workers: dict[int, Callable[[Answers | Failure], None]] = {}
        # Images received and not answered, by worker number.
        self._in_flight: Counter[int] = Counter()
        self._lock = threading.Lock()
        # Of each batch thread: the answers that it sends when its batch is done.
        self._finished = threading.local()

    def add_version(self, version: Version) -> None:
        """Receive images for a version. From any thread."""
        self._names[version.number] = version.name
        self._versions[version.number] = version

    def remove_version(self, version: Version) -> None:
        """Receive no more images for a version. Images in flight are answered."""
        self._versions.pop(version.number, None)

    def add_worker(self, number: int, send: Callable[[Answers | Failure], None]) -> None:
        """Answer a worker by `send`, which may be called from any thread."""
        self._workers[number] = send

    def remove_worker(self, number: int) -> None:
        """Cancel all images of a worker, and answer it no more."""
        for version in list(self._versions.values()):
            for slot in version.slots.of_worker(number):
                version.slots.cancel(slot, version.slots.generation(slot))
            version.slots.set_in_flight(number, 0)
        # Last: from here on another worker may get the number.
        del self._workers[number]

    def uses(self, number: int) -> bool:
        """Whether the worker of that number is connected, or images of it are in flight in its slots."""
        return number in self._workers or bool(self._in_flight[number])

    def receive(self, worker: int, submission: Submission) -> None:
        """Queue an image of a worker. Raises if the worker cannot have sent the message."""
        number, slot, generation, request = submission
        version = self._versions.get(number)
        if version is None:
            self._send(worker, Failure(number, slot, generation, ModelGoneError(self._names[number])))
            return
        slots = version.slots
        if slot not in slots.of_worker(worker):
            raise ValueError(f"slot {slot} does not belong to HTTP worker {worker}")
        if generation != slots.generation(slot) or generation <= version.received.get(slot, 0):
            self._drop("submission", worker, slot, generation)
            return
        version.received[slot] = generation
        with self._lock:
            self._in_flight[worker] += 1
        future = SlotFuture(slots, slot, generation)
        future.add_done_callback(partial(self._on_done, version, worker, slot, generation))
        try:
            # Workers number their requests independently, so the key names the worker.
            key = (worker, request.fairness_key)
            request = replace(request, cancel_token=future.cancel_token, fairness_key=key)
            version.batcher.submit(BatchItem(slots.pixels(slot), request), future=future)
        except Exception as error:  # noqa: BLE001 - any error is the image's answer
            self._fail(worker, Failure(number, slot, generation, error))

    def batch_over(self, report: BatchReport) -> None:
        """Send the answers of the batch that this thread has just run. For the batch threads."""
        finished: dict[tuple[int, int], list[Answered]] | None = getattr(self._finished, "answers", None)
        if not finished:
            return
        self._finished.answers = None
        for (version, worker), answers in finished.items():
            self._send(worker, Answers(version, report, answers))
            self._forget(worker, len(answers))

    def _on_done(
        self, version: Version, worker: int, slot: int, generation: int, done: Future[Completed[ItemOutput]]
    ) -> None:
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or error is not None:
            sent = error if isinstance(error, Exception) else None
            self._fail(worker, Failure(version.number, slot, generation, sent))
            return
        if version.slots.generation(slot) != generation:
            # The answer would overwrite the slot's next image.
            self._drop("answer", worker, slot, generation)
            self._forget(worker, 1)
            return
        completed = done.result()
        output = completed.result
        version.slots.write(slot, output)
        version.slots.seconds_per_image = version.batcher.expected_seconds(1)
        finished = getattr(self._finished, "answers", None)
        if finished is None:
            finished = self._finished.answers = defaultdict(list)
        classes = 0 if output.indices is None else len(output.indices)
        finished[version.number, worker].append((slot, classes, generation, completed.queue_seconds, output.finite))

    def _fail(self, worker: int, failure: Failure) -> None:
        self._send(worker, failure)
        self._forget(worker, 1)

    def _drop(self, message: StaleMessage, worker: int, slot: int, generation: int) -> None:
        _log.warning("dropped a stale %s of HTTP worker %d: slot %d, generation %d", message, worker, slot, generation)
        self._on_stale(message)

    def _forget(self, worker: int, images: int) -> None:
        with self._lock:
            self._in_flight[worker] -= images

    def _send(self, number: int, message: Answers | Failure) -> None:
        send = self._workers.get(number)
        if send is not None:
            send(message)
