"""Images of the HTTP workers, in the engine process: one thread queues what workers submit, and the batch threads send
the answers."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from models.inference.batch_item import BatchItem, ItemOutput
from models.interface.errors import ModelGoneError
from models.interface.telemetry import BatchReport, StaleMessage
from models.scheduling.batcher import Batcher, Completed
from models.workers.channel import FrameReader, frame
from models.workers.messages import Answered, Answers, Failure, Submission
from models.workers.outbox import Outbox
from models.workers.shared_slots import SharedSlots

_log = logging.getLogger(__name__)

_READ_BYTES = 1 << 16

# A worker that reads none of its answers for so long has stopped.
_READ_TIMEOUT_S = 1.0


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


@dataclass(frozen=True, slots=True, eq=False)
class _Worker:
    number: int
    end: socket.socket
    outbox: Outbox
    frames: FrameReader = field(default_factory=FrameReader)


class SlotFuture(Future[Completed[ItemOutput]]):
    """An image's entry in the batcher's queue. Its slot says whether the worker has cancelled it, and tells the worker
    that its forward has started."""

    def __init__(self, slots: SharedSlots, slot: int, generation: int) -> None:
        super().__init__()
        self._slots = slots
        self._slot = slot
        self._generation = generation

    def wanted(self) -> bool:
        return not self._slots.cancelled(self._slot, self._generation)

    def set_running_or_notify_cancel(self) -> bool:
        # The batcher calls this under its lock. It cancels the future later, without the lock: callbacks send.
        if not self.wanted():
            return False
        running = super().set_running_or_notify_cancel()
        if running:
            self._slots.start(self._slot, self._generation)
        return running


class ImageReceiver:
    """`on_lost(number, end)` is called, from another thread, when a worker has closed its end or does not read its
    answers; by then its images are cancelled. `on_failure` gets the reason if the thread fails. `on_stale` is called
    for each message that was dropped."""

    def __init__(
        self,
        on_lost: Callable[[int, socket.socket], None],
        on_failure: Callable[[str], None],
        on_stale: Callable[[StaleMessage], None],
    ) -> None:
        self._on_lost = on_lost
        self._on_failure = on_failure
        self._on_stale = on_stale
        self._versions: dict[int, Version] = {}
        # Names of all versions, removed ones included.
        self._names: dict[int, str] = {}
        self._workers: dict[int, _Worker] = {}
        # Images received and not answered, by worker number.
        self._in_flight: Counter[int] = Counter()
        self._lock = threading.Lock()
        # Of each batch thread: the answers that it sends when its batch is done.
        self._finished = threading.local()
        self._selector = selectors.DefaultSelector()
        self._wake_send, self._wake_receive = socket.socketpair()
        self._wake_send.setblocking(False)
        self._selector.register(self._wake_receive, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="image-receiver", daemon=True)
        self._thread.start()

    def add_version(self, version: Version) -> None:
        """Receive images for a version."""
        self._names[version.number] = version.name
        self._versions[version.number] = version

    def remove_version(self, version: Version) -> None:
        """Receive no more images for a version. Images in flight are answered."""
        self._versions.pop(version.number, None)

    def add_worker(self, number: int, end: socket.socket) -> None:
        """Receive images of a worker over its socket, which the receiver owns from here on."""
        worker = self._workers[number] = _Worker(number, end, Outbox(end, self._wake))
        self._selector.register(end, selectors.EVENT_READ, worker)

    def uses(self, number: int) -> bool:
        """Whether the worker of that number is connected, or images of it are in flight in its slots."""
        return number in self._workers or bool(self._in_flight[number])

    def close(self) -> None:
        """End the thread. Batchers may still answer."""
        self._wake_send.close()
        self._thread.join()
        self._selector.close()
        self._wake_receive.close()
        for worker in self._workers.values():
            worker.outbox.close()

    def batch_over(self, report: BatchReport) -> None:
        """Send the answers of the batch that this thread has just run."""
        finished: dict[tuple[int, int], list[Answered]] | None = getattr(self._finished, "answers", None)
        if not finished:
            return
        self._finished.answers = None
        for (version, worker), answers in finished.items():
            self._send(worker, Answers(version, report, answers))
            self._forget(worker, len(answers))

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except Exception as error:  # noqa: BLE001 - any error: no image is received any more
            _log.exception("the image receiver failed")
            self._on_failure(f"no image is received from HTTP workers any more: {type(error).__name__}: {error}")

    def _step(self) -> bool:
        """Wait for the next events and process them. Return False once closed."""
        full = [worker for worker in list(self._workers.values()) if worker.outbox.full]
        for worker in full:
            self._selector.modify(worker.end, selectors.EVENT_READ | selectors.EVENT_WRITE, worker)
        for key, events in self._selector.select(_READ_TIMEOUT_S if full else None):
            if key.data is None:
                if not self._wake_receive.recv(_READ_BYTES):
                    return False
                continue
            if events & selectors.EVENT_WRITE:
                self._selector.modify(key.data.end, selectors.EVENT_READ, key.data)
                key.data.outbox.flush()
            if events & selectors.EVENT_READ:
                self._receive(key.data)
        for worker in full:
            if worker.outbox.stuck_seconds() > _READ_TIMEOUT_S and self._workers.get(worker.number) is worker:
                _log.warning("HTTP worker %d does not read its answers; dropping it", worker.number)
                self._lose(worker)
        return True

    def _wake(self) -> None:
        """Have the thread check which outboxes are full. If its socket is full as well, it will do so anyway."""
        with suppress(OSError):
            self._wake_send.send(b".")

    def _receive(self, worker: _Worker) -> None:
        try:
            received = worker.end.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._lose(worker)
            return
        try:
            for submission in worker.frames.feed(received):
                self._submit(worker.number, submission)
        except Exception:  # noqa: BLE001 - any error: this worker is replaced, the others are served
            _log.exception("HTTP worker %d sent a message that cannot be processed; dropping it", worker.number)
            self._lose(worker)

    def _submit(self, worker: int, submission: Submission) -> None:
        number, slot, top_k, generation, request = submission
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
            version.batcher.submit(
                BatchItem(slots.pixels(slot), top_k, future.wanted), caller=(worker, request), future=future
            )
        except Exception as error:  # noqa: BLE001 - any error is the image's answer
            self._fail(worker, Failure(number, slot, generation, error))

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
        worker = self._workers.get(number)
        if worker is not None:
            worker.outbox.send(frame(message))

    def _lose(self, worker: _Worker) -> None:
        self._selector.unregister(worker.end)
        worker.outbox.close()
        for version in list(self._versions.values()):
            for slot in version.slots.of_worker(worker.number):
                version.slots.cancel(slot, version.slots.generation(slot))
            version.slots.set_in_flight(worker.number, 0)
        # Last: from here on another worker may get the number.
        del self._workers[worker.number]
        self._on_lost(worker.number, worker.end)
