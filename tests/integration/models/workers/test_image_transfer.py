"""The engine process's side of the images of HTTP workers. The test is the workers: it may send what none should."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest

from models.inference.image_job import BatchItem, ItemOutput
from models.interface.errors import ModelDownError, ModelGoneError
from models.interface.request import InferenceRequest, Parameters
from models.interface.telemetry import StaleMessage
from models.scheduling.batcher import Batcher
from models.workers.image_transfer import ImageReceiver, Version
from models.workers.messages import Answers
from models.workers.shared_slots import SharedSlots, SlotCancelToken, SlotShape

_TIMEOUT_S = 30
_NO_CLASSES: Any = np.empty(0)
_SHAPE = SlotShape(workers=2, each=4, side=2, dimensions=1, classes=0)


_PARAMETERS = InferenceRequest("features").parameters


class _Submission(NamedTuple):
    version: int
    slot: int
    generation: int
    parameters: Parameters = _PARAMETERS


@dataclass
class _Engine:
    """A forward that returns the first byte of each image once the gate is open."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    sizes: list[int] = field(default_factory=list)

    def forward(self, items: Sequence[BatchItem]) -> list[ItemOutput]:
        firsts = [float(item.image.flatten()[0]) for item in items]
        self.sizes.append(len(items))
        self.entered.set()
        assert self.gate.wait(_TIMEOUT_S)
        return [ItemOutput(np.array([first], np.float32), _NO_CLASSES, _NO_CLASSES, finite=True) for first in firsts]


class _Worker:
    """A worker's mapping of the slots, and the messages that it was sent."""

    def __init__(self, number: int, receiver: ImageReceiver, descriptor: int) -> None:
        self.number = number
        self.slots = SharedSlots(descriptor, _SHAPE)
        self.messages: queue.Queue[Answers] = queue.Queue()
        self.on_message: Callable[[Answers], None] = self.messages.put
        self._receiver = receiver

    def slot(self, which: int = 0) -> int:
        return self.slots.of_worker(self.number)[which]

    def submit(self, pixel: int, which: int = 0) -> _Submission:
        """Write an image with that first byte into a slot, and submit it."""
        generation = self.slots.claim(self.slot(which))
        self.slots.pixels(self.slot(which)).fill_(pixel)
        submission = _Submission(0, self.slot(which), generation)
        self.send(submission)
        return submission

    def send(self, submission: _Submission) -> None:
        self._receiver.receive(self.number, submission)

    def read(self) -> Answers:
        return self.messages.get(timeout=_TIMEOUT_S)

    def answer(self) -> tuple[int, int, float]:
        """Return slot, generation and feature of the next message, which has one answer."""
        [(slot, generation, result)] = self.read().results
        assert isinstance(result, tuple)
        return slot, generation, float(self.slots.read(slot, 0, finite=True).features[0])


@dataclass
class _Setup:
    receiver: ImageReceiver
    engine: _Engine
    version: Version
    batcher: Batcher[BatchItem, ItemOutput]
    workers: list[_Worker]
    stale: list[StaleMessage]

    def until(self, holds: Callable[[], bool]) -> None:
        """Poll for a condition that is not reported."""
        waiting = threading.Event()
        for _ in range(_TIMEOUT_S * 1000):
            if holds():
                return
            waiting.wait(0.001)
        raise AssertionError("timed out")


@pytest.fixture
def setup() -> Iterator[_Setup]:
    engine = _Engine()
    stale: list[StaleMessage] = []
    workers: list[_Worker] = []
    receiver = ImageReceiver(lambda number, answers: workers[number].on_message(answers), stale.append)
    descriptor = SharedSlots.create(_SHAPE)
    batcher: Batcher[BatchItem, ItemOutput] = Batcher(engine.forward, name="tiny", on_batch=receiver.batch_over)
    version = Version(0, "tiny", descriptor, SharedSlots(descriptor, _SHAPE), batcher)
    receiver.add_version(version)
    workers += [_Worker(number, receiver, descriptor) for number in range(2)]
    yield _Setup(receiver, engine, version, batcher, workers, stale)
    engine.gate.set()
    assert batcher.close(_TIMEOUT_S)
    os.close(descriptor)


def _cancel(worker: _Worker, submitted: _Submission) -> None:
    SlotCancelToken(worker.slots, submitted.slot, submitted.generation).cancel()


def test_an_answer_names_its_slots_generation(setup: _Setup) -> None:
    setup.engine.gate.set()
    [worker, _] = setup.workers
    for pixel in (7, 8):
        submitted = worker.submit(pixel)
        assert worker.answer() == (submitted.slot, submitted.generation, pixel)


def test_a_repeated_submission_is_dropped_and_counted(setup: _Setup) -> None:
    [worker, _] = setup.workers
    submitted = worker.submit(7)
    assert setup.engine.entered.wait(_TIMEOUT_S)
    worker.send(submitted)
    setup.until(lambda: setup.stale == ["submission"])
    setup.engine.gate.set()
    assert worker.answer() == (submitted.slot, submitted.generation, 7)
    worker.send(submitted)
    other = worker.submit(9)

    assert worker.answer() == (other.slot, other.generation, 9)
    assert setup.stale == ["submission", "submission"]
    assert setup.engine.sizes == [1, 1]


def test_the_answer_of_an_earlier_image_does_not_overwrite_the_pixels_of_its_slots_next_image(setup: _Setup) -> None:
    [worker, _] = setup.workers
    worker.submit(7)
    assert setup.engine.entered.wait(_TIMEOUT_S)
    # A correct worker does not claim a slot that is in use.
    slot = worker.slot()
    generation = worker.slots.claim(slot)
    worker.slots.pixels(slot).fill_(200)
    setup.engine.gate.set()
    setup.until(lambda: setup.stale == ["answer"])

    assert worker.slots.pixels(slot).flatten().tolist() == [200] * 12
    worker.send(_Submission(0, slot, generation))
    assert worker.answer() == (slot, generation, 200)
    setup.until(lambda: not setup.receiver.in_flight(0))


def test_a_cancelled_image_in_the_queue_is_answered_without_the_batchers_lock(setup: _Setup) -> None:
    [worker, _] = setup.workers
    batcher = setup.batcher
    lock_was_free: list[bool] = []

    def on_message(message: Answers) -> None:
        other = threading.Thread(target=batcher.running_seconds, daemon=True)
        other.start()
        other.join(60)
        lock_was_free.append(not other.is_alive())
        worker.messages.put(message)

    worker.submit(7)
    assert setup.engine.entered.wait(_TIMEOUT_S)
    cancelled = worker.submit(8, which=1)
    assert batcher.depth == 1
    _cancel(worker, cancelled)
    worker.on_message = on_message
    setup.engine.gate.set()

    assert isinstance(worker.read().results[0][2], tuple)
    assert worker.read() == Answers(0, None, [(cancelled.slot, cancelled.generation, None)])
    assert lock_was_free == [True, True]


def test_a_cancelled_image_is_answered_when_its_batcher_is_abandoned(setup: _Setup) -> None:
    [worker, _] = setup.workers
    batcher = setup.batcher
    worker.submit(7)
    assert setup.engine.entered.wait(_TIMEOUT_S)
    cancelled = worker.submit(8, which=1)
    setup.until(lambda: batcher.depth == 1)
    _cancel(worker, cancelled)
    batcher.abandon(lambda: ModelDownError("tiny"))

    assert isinstance(worker.read().results[0][2], ModelDownError)
    assert worker.read() == Answers(0, None, [(cancelled.slot, cancelled.generation, None)])
    setup.until(lambda: not setup.receiver.in_flight(0))


def test_cancelling_an_image_does_not_cancel_the_next_one_of_its_slot(setup: _Setup) -> None:
    setup.engine.gate.set()
    [worker, _] = setup.workers
    first = worker.submit(7)
    worker.answer()
    next_generation = worker.slots.claim(first.slot)
    _cancel(worker, first)

    assert SlotCancelToken(worker.slots, first.slot, first.generation).cancelled
    following = SlotCancelToken(worker.slots, first.slot, next_generation)
    assert not following.cancelled
    following.cancel()
    assert following.cancelled


def test_a_submission_of_another_workers_slot_is_refused(setup: _Setup) -> None:
    setup.engine.gate.set()
    faulty, other = setup.workers
    with pytest.raises(ValueError, match="does not belong to HTTP worker 0"):
        faulty.send(_Submission(0, other.slot(), 1))
    submitted = other.submit(9)

    assert other.answer() == (submitted.slot, submitted.generation, 9)


def test_an_image_of_a_removed_version_fails_with_its_generation(setup: _Setup) -> None:
    [worker, _] = setup.workers
    del setup.receiver.versions[setup.version.number]
    submitted = worker.submit(7)
    [(slot, generation, error)] = worker.read().results

    assert (slot, generation) == (submitted.slot, submitted.generation)
    assert isinstance(error, ModelGoneError)
    assert not setup.receiver.in_flight(0)


def test_a_replacement_gets_the_slots_of_a_killed_worker_with_their_generations(setup: _Setup) -> None:
    killed, _ = setup.workers
    before = killed.submit(7)
    assert setup.engine.entered.wait(_TIMEOUT_S)
    setup.receiver.cancel_all(0)
    # Its image is in a forward; until that ends, no other worker may use the slot.
    assert setup.receiver.in_flight(0)
    setup.engine.gate.set()
    setup.until(lambda: not setup.receiver.in_flight(0))
    replacement = setup.workers[0] = _Worker(0, setup.receiver, setup.version.descriptor)
    after = replacement.submit(9)

    assert replacement.answer() == (before.slot, before.generation + 1, 9)
    assert after.generation == before.generation + 1
