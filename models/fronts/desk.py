"""Where fronts hand in images, in the engine process: one thread takes what they submit to the batchers of its models,
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
from dataclasses import dataclass

from models.batching import Batcher, Completed
from models.errors import ModelGoneError
from models.fronts.records import (
    SUBMISSION_BYTES,
    Answered,
    Failure,
    Submission,
    answers_frame,
    failure_frame,
    submissions,
)
from models.fronts.slots import Slots
from models.items import Item, Output
from models.telemetry import BatchReport

_log = logging.getLogger(__name__)

_PIECE = SUBMISSION_BYTES * 2048

# A front that takes nothing for so long has stopped. Whoever answers waits for it, that one time.
_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """One load of a model, as fronts know it: by a number that no other has had."""

    number: int
    name: str
    descriptor: int
    slots: Slots
    batcher: Batcher[Item, Output]


class _Turn(Future[Completed[Output]]):
    """An image's place in the batcher's queue. Whether its front still waits is said in its slot, and so is, for the
    front to see, that its forward has begun."""

    def __init__(self, slots: Slots, slot: int) -> None:
        super().__init__()
        self._slots = slots
        self._slot = slot

    def wanted(self) -> bool:
        return not self._slots.abandoned(self._slot)

    def set_running_or_notify_cancel(self) -> bool:
        if self._slots.abandoned(self._slot):
            self.cancel()
        running = super().set_running_or_notify_cancel()
        if running:
            self._slots.begin(self._slot)
        return running


class Desk:
    """`on_lost` is told, from another thread, of a front that has closed its end or does not read its answers, with the
    desk's end; all that it has in the house by then is abandoned. `on_failure` hears why nothing is taken any more."""

    def __init__(self, on_lost: Callable[[int, socket.socket], None], on_failure: Callable[[str], None]) -> None:
        self._on_lost = on_lost
        self._on_failure = on_failure
        self._versions: dict[int, Version] = {}
        # Also of those that are gone.
        self._names: dict[int, str] = {}
        self._fronts: dict[int, socket.socket] = {}
        # Of which front how many images are in the house.
        self._inside: Counter[int] = Counter()
        self._lock = threading.Lock()
        # Frames go whole, from whichever thread.
        self._sending: dict[int, threading.Lock] = {}
        # Of each batcher's thread: what it will hand out when its batch is over.
        self._finished = threading.local()
        self._selector = selectors.DefaultSelector()
        self._waking, self._woken = socket.socketpair()
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

    def add(self, front: int, end: socket.socket) -> None:
        """Take images of a front from now on, over its socket, which is the desk's from here."""
        # For what a front reads slowly, as the errors of a full house. To be read it is only when there is something.
        end.settimeout(_PATIENCE_S)
        self._sending[front] = threading.Lock()
        self._fronts[front] = end
        self._selector.register(end, selectors.EVENT_READ, front)

    def busy_with(self, front: int) -> bool:
        """Whether it is there, or images of it are, whose slots cannot be another's yet."""
        return front in self._fronts or bool(self._inside[front])

    def close(self) -> None:
        """End the thread. Batchers may still answer."""
        self._waking.close()
        self._thread.join()
        self._selector.close()
        for end in (self._woken, *self._fronts.values()):
            end.close()

    def batch_over(self, report: BatchReport) -> None:
        """Hand out the answers of this thread's batch. For the batchers' threads, after each of them."""
        finished: dict[tuple[int, int], list[Answered]] | None = getattr(self._finished, "answers", None)
        if not finished:
            return
        self._finished.answers = None
        for (number, front), answers in finished.items():
            self._send(front, answers_frame(number, report, answers))
            self._left(front, len(answers))

    def _work(self) -> None:
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.data is None:
                        return
                    self._receive(key.data)
        except Exception as error:  # noqa: BLE001 - whatever it was: nobody takes anything any more
            _log.exception("the desk is at fault")
            self._on_failure(f"nothing is taken from fronts any more: {type(error).__name__}: {error}")

    def _receive(self, front: int) -> None:
        end = self._fronts[front]
        try:
            # Whole records: each was sent by one call, and the size is a multiple of theirs.
            piece = end.recv(_PIECE)
        except OSError:
            piece = b""
        if not piece or len(piece) % SUBMISSION_BYTES:
            self._lose(front)
            return
        for submitted in submissions(piece):
            self._submit(front, submitted)

    def _submit(self, front: int, submitted: Submission) -> None:
        number, slot, top_k, caller = submitted
        with self._lock:
            self._inside[front] += 1
        version = self._versions.get(number)
        if version is None:
            self._fail(front, Failure(number, slot, ModelGoneError(self._names[number])))
            return
        turn = _Turn(version.slots, slot)
        turn.add_done_callback(lambda done: self._answered(version, front, slot, done))
        try:
            version.batcher.submit(
                Item(version.slots.pixels(slot), top_k, turn.wanted), caller=(front, caller), future=turn
            )
        except Exception as error:  # noqa: BLE001 - whatever it was: the front hears, the thread lives on
            self._fail(front, Failure(number, slot, error))

    def _answered(self, version: Version, front: int, slot: int, done: Future[Completed[Output]]) -> None:
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or error is not None:
            self._fail(front, Failure(version.number, slot, error if isinstance(error, Exception) else None))
            return
        completed = done.result()
        output = completed.result
        version.slots.write(slot, output)
        version.slots.pace = version.batcher.expected_seconds(1)
        finished = getattr(self._finished, "answers", None)
        if finished is None:
            finished = self._finished.answers = defaultdict(list)
        classes = 0 if output.indices is None else len(output.indices)
        finished[version.number, front].append(Answered(slot, classes, output.finite, completed.queue_seconds))

    def _fail(self, front: int, failure: Failure) -> None:
        self._send(front, failure_frame(failure))
        self._left(front, 1)

    def _left(self, front: int, images: int) -> None:
        with self._lock:
            self._inside[front] -= images

    def _send(self, front: int, frame: bytes) -> None:
        end = self._fronts.get(front)
        if end is None:
            return
        try:
            with self._sending[front]:
                end.sendall(frame)
        except OSError as error:
            _log.warning("front %d does not take its answers: %s", front, error)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _lose(self, front: int) -> None:
        end = self._fronts.pop(front)
        self._selector.unregister(end)
        end.close()
        for version in list(self._versions.values()):
            for slot in version.slots.of_front(front):
                version.slots.abandon(slot)
            version.slots.count(front, 0)
        self._on_lost(front, end)
