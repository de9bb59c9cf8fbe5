"""Where workers hand in images, in the engine process: one thread takes what they submit to the batchers of its models,
and the batchers' threads give back what comes of it."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from models.inference.batch_item import BatchItem, ItemOutput
from models.interface.errors import ModelGoneError
from models.interface.telemetry import BatchReport, StaleMessage
from models.scheduling.batcher import Batcher, Completed
from models.workers.outbox import Outbox
from models.workers.shared_slots import SharedSlots, SlotCancelToken
from models.workers.wire_format import (
    SUBMISSION_BYTES,
    Answered,
    Failure,
    Submission,
    answers_frame,
    failure_frame,
    submissions,
)

_log = logging.getLogger(__name__)

_PIECE = SUBMISSION_BYTES * 2048

# A worker that takes nothing of its answers for so long has stopped.
_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """One load of a model, as workers know it: by a number that no other has had. `taken`: the generation of each
    slot's last image that was taken."""

    number: int
    name: str
    descriptor: int
    slots: SharedSlots
    batcher: Batcher[BatchItem, ItemOutput]
    taken: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Worker:
    number: int
    end: socket.socket
    outbox: Outbox


class SlotFuture(Future[Completed[ItemOutput]]):
    """An image's place in the batcher's queue. Whether its worker still waits is said in its slot, and so is, for the
    worker to see, that its forward has begun."""

    def __init__(self, slots: SharedSlots, slot: int, generation: int) -> None:
        super().__init__()
        self._slots = slots
        self._slot = slot
        self._generation = generation
        self.cancel_token = SlotCancelToken(slots, slot, generation)

    def set_running_or_notify_cancel(self) -> bool:
        # The batcher asks this under its lock, and cancels afterwards: that calls back, and answers the worker.
        if self.cancel_token.cancelled:
            return False
        running = super().set_running_or_notify_cancel()
        if running:
            self._slots.begin(self._slot, self._generation)
        return running


class ImageReceiver:
    """`on_lost` is told, from another thread, of a worker that has closed its end or does not read its answers, with
    the desk's end; all that it has in the house by then is abandoned. `on_failure` hears why nothing is taken any more.
    `on_stale` hears of each message that was dropped."""

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
        # Also of those that are gone.
        self._names: dict[int, str] = {}
        self._workers: dict[int, _Worker] = {}
        # Of which worker how many images are in the house.
        self._inside: Counter[int] = Counter()
        self._lock = threading.Lock()
        # Of each batcher's thread: what it will hand out when its batch is over.
        self._finished = threading.local()
        self._selector = selectors.DefaultSelector()
        self._waking, self._woken = socket.socketpair()
        self._waking.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._work, name="desk", daemon=True)
        self._thread.start()

    def open_for(self, version: Version) -> None:
        """Take its images from now on."""
        self._names[version.number] = version.name
        self._versions[version.number] = version

    def close_for(self, version: Version) -> None:
        """Take no more of its images. What was taken is answered."""
        self._versions.pop(version.number, None)

    def add(self, number: int, end: socket.socket) -> None:
        """Take images of a worker from now on, over its socket, which is the desk's from here."""
        worker = self._workers[number] = _Worker(number, end, Outbox(end, self._wake))
        self._selector.register(end, selectors.EVENT_READ, worker)

    def busy_with(self, number: int) -> bool:
        """Whether that worker is there, or images of it are, whose slots cannot be another's yet."""
        return number in self._workers or bool(self._inside[number])

    def close(self) -> None:
        """End the thread. Batchers may still answer."""
        self._waking.close()
        self._thread.join()
        self._selector.close()
        self._woken.close()
        for worker in self._workers.values():
            worker.outbox.close()

    def batch_over(self, report: BatchReport) -> None:
        """Hand out the answers of this thread's batch. For the batchers' threads, after each of them."""
        finished: dict[tuple[int, int], list[Answered]] | None = getattr(self._finished, "answers", None)
        if not finished:
            return
        self._finished.answers = None
        for (version, worker), answers in finished.items():
            self._send(worker, answers_frame(version, report, answers))
            self._left(worker, len(answers))

    def _work(self) -> None:
        try:
            while self._look():
                pass
        except Exception as error:  # noqa: BLE001 - whatever it was: nobody takes anything any more
            _log.exception("the desk is at fault")
            self._on_failure(f"nothing is taken from workers any more: {type(error).__name__}: {error}")

    def _look(self) -> bool:
        """Do what there is to do next, waited for. False once closed."""
        full = [worker for worker in list(self._workers.values()) if worker.outbox.full]
        for worker in full:
            self._selector.modify(worker.end, selectors.EVENT_READ | selectors.EVENT_WRITE, worker)
        for key, events in self._selector.select(_PATIENCE_S if full else None):
            if key.data is None:
                if not self._woken.recv(_PIECE):
                    return False
                continue
            if events & selectors.EVENT_WRITE:
                self._selector.modify(key.data.end, selectors.EVENT_READ, key.data)
                key.data.outbox.flush()
            if events & selectors.EVENT_READ:
                self._receive(key.data)
        for worker in full:
            if worker.outbox.stuck_seconds() > _PATIENCE_S and self._workers.get(worker.number) is worker:
                _log.warning("worker %d does not take its answers", worker.number)
                self._lose(worker)
        return True

    def _wake(self) -> None:
        """Have the thread look again. If it has not come to the last calls, it will."""
        with suppress(OSError):
            self._waking.send(b".")

    def _receive(self, worker: _Worker) -> None:
        try:
            # Whole records: each was sent by one call, and the size is a multiple of theirs.
            piece = worker.end.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._lose(worker)
            return
        try:
            for submitted in submissions(piece):
                self._submit(worker.number, submitted)
        except Exception:  # noqa: BLE001 - whatever it was: others are served, and another takes its place
            _log.exception("worker %d hands in what cannot be taken: it is given up", worker.number)
            self._lose(worker)

    def _submit(self, worker: int, submitted: Submission) -> None:
        number, slot, generation, request = submitted
        version = self._versions.get(number)
        if version is None:
            name = self._names[number]
            self._send(worker, failure_frame(Failure(number, slot, generation, ModelGoneError(name))))
            return
        slots = version.slots
        if slot not in slots.of_worker(worker):
            raise ValueError(f"slot {slot} is not of worker {worker}")
        if generation != slots.generation(slot) or generation <= version.taken.get(slot, 0):
            self._drop("submission", worker, slot, generation)
            return
        version.taken[slot] = generation
        with self._lock:
            self._inside[worker] += 1
        future = SlotFuture(slots, slot, generation)
        future.add_done_callback(partial(self._answered, version, worker, slot, generation))
        try:
            key = (worker, request.fairness_key)
            request = replace(request, cancel_token=future.cancel_token, fairness_key=key)
            version.batcher.submit(BatchItem(slots.pixels(slot), request), future=future)
        except Exception as error:  # noqa: BLE001 - whatever it was: the worker hears, the thread lives on
            self._fail(worker, Failure(number, slot, generation, error))

    def _answered(
        self, version: Version, worker: int, slot: int, generation: int, done: Future[Completed[ItemOutput]]
    ) -> None:
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or error is not None:
            told = error if isinstance(error, Exception) else None
            self._fail(worker, Failure(version.number, slot, generation, told))
            return
        if version.slots.generation(slot) != generation:
            # Written into the slot, it would be the pixels or the answer of another image.
            self._drop("answer", worker, slot, generation)
            self._left(worker, 1)
            return
        completed = done.result()
        output = completed.result
        version.slots.write(slot, output)
        version.slots.pace = version.batcher.expected_seconds(1)
        finished = getattr(self._finished, "answers", None)
        if finished is None:
            finished = self._finished.answers = defaultdict(list)
        classes = 0 if output.indices is None else len(output.indices)
        answer = Answered(slot, classes, generation, completed.queue_seconds, output.finite)
        finished[version.number, worker].append(answer)

    def _fail(self, worker: int, failure: Failure) -> None:
        self._send(worker, failure_frame(failure))
        self._left(worker, 1)

    def _drop(self, message: StaleMessage, worker: int, slot: int, generation: int) -> None:
        _log.warning("dropped a stale %s of worker %d: slot %d, generation %d", message, worker, slot, generation)
        self._on_stale(message)

    def _left(self, worker: int, images: int) -> None:
        with self._lock:
            self._inside[worker] -= images

    def _send(self, number: int, frame: bytes) -> None:
        worker = self._workers.get(number)
        if worker is not None:
            worker.outbox.send(frame)

    def _lose(self, worker: _Worker) -> None:
        self._selector.unregister(worker.end)
        worker.outbox.close()
        for version in list(self._versions.values()):
            for slot in version.slots.of_worker(worker.number):
                version.slots.abandon(slot, version.slots.generation(slot))
            version.slots.count(worker.number, 0)
        # Last: from here on its number may be another's.
        del self._workers[worker.number]
        self._on_lost(worker.number, worker.end)
