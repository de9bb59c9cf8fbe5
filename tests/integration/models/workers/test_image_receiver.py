"""The engine process's end of a worker's images socket. The test is the worker: it may send what no worker should."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from models.inference.batch_item import BatchItem, ItemOutput
from models.interface.errors import ModelDownError, ModelGoneError
from models.interface.telemetry import StaleMessage
from models.scheduling.batcher import Batcher
from models.workers import image_receiver
from models.workers.channel import FrameReader, frame
from models.workers.image_receiver import ImageReceiver, Version
from models.workers.messages import Answers, Failure, Submission
from models.workers.outbox import Outbox
from models.workers.shared_slots import SharedSlots, SlotShape

_TIMEOUT_S = 30
_SHAPE = SlotShape(workers=2, each=4, side=2, dimensions=1, classes=0)


@dataclass
class _Engine:
    """A forward that returns the first byte of each image once the gate is open, and what the receiver reports."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    sizes: list[int] = field(default_factory=list)
    stale: list[StaleMessage] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    lost_one: threading.Event = field(default_factory=threading.Event)
    failures: list[str] = field(default_factory=list)

    def forward(self, items: Sequence[BatchItem]) -> list[ItemOutput]:
        firsts = [float(item.image.flatten()[0]) for item in items]
        self.sizes.append(len(items))
        self.entered.set()
        assert self.gate.wait(_TIMEOUT_S)
        return [ItemOutput(np.array([first], np.float32), None, None, finite=True) for first in firsts]

    def lose(self, worker: int, _end: socket.socket) -> None:
        self.lost.append(worker)
        self.lost_one.set()


class _Worker:
    """A worker's end of the socket, and its mapping of the slots."""

    def __init__(self, number: int, end: socket.socket, descriptor: int) -> None:
        end.settimeout(_TIMEOUT_S)
        self.number, self.end = number, end
        self.slots = SharedSlots(descriptor, _SHAPE)
        self.frames = FrameReader()

    def slot(self, which: int = 0) -> int:
        return self.slots.of_worker(self.number)[which]

    def submit(self, pixel: int, which: int = 0) -> Submission:
        """Write an image with that first byte into a slot, and submit it."""
        generation = self.slots.claim(self.slot(which))
        self.slots.pixels(self.slot(which)).fill_(pixel)
        submitted = Submission(0, self.slot(which), 0, generation, 1)
        self.end.sendall(frame(submitted))
        return submitted

    def read(self) -> list[Answers | Failure]:
        """Return the next messages, at least one."""
        frames: list[Answers | Failure] = []
        while not frames:
            piece = self.end.recv(1 << 18)
            assert piece, "the receiver has closed its end"
            frames = list(self.frames.feed(piece))
        return frames

    def answer(self) -> tuple[int, int, float]:
        """Return slot, generation and feature of the next message, which has one answer."""
        [frame] = self.read()
        assert isinstance(frame, Answers)
        [answered] = frame.answers
        slot, _, generation, _, _ = answered
        return slot, generation, float(self.slots.read(slot, 0, finite=True).features[0])


@dataclass
class _Setup:
    receiver: ImageReceiver
    engine: _Engine
    version: Version
    workers: list[_Worker]

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
    receiver = ImageReceiver(engine.lose, engine.failures.append, engine.stale.append)
    descriptor = SharedSlots.create(_SHAPE)
    batcher: Batcher[BatchItem, ItemOutput] = Batcher(engine.forward, name="tiny", on_batch=receiver.batch_over)
    version = Version(0, "tiny", descriptor, SharedSlots(descriptor, _SHAPE), batcher)
    receiver.add_version(version)
    workers = []
    for number in range(2):
        here, there = socket.socketpair()
        receiver.add_worker(number, here)
        workers.append(_Worker(number, there, descriptor))
    yield _Setup(receiver, engine, version, workers)
    engine.gate.set()
    assert batcher.close(_TIMEOUT_S)
    receiver.close()
    os.close(descriptor)
    for worker in workers:
        worker.end.close()
    assert engine.failures == []


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
    worker.end.sendall(frame(submitted))
    setup.until(lambda: setup.engine.stale == ["submission"])
    setup.engine.gate.set()
    assert worker.answer() == (submitted.slot, submitted.generation, 7)
    worker.end.sendall(frame(submitted))
    other = worker.submit(9)

    assert worker.answer() == (other.slot, other.generation, 9)
    assert setup.engine.stale == ["submission", "submission"]
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
    setup.until(lambda: setup.engine.stale == ["answer"])

    assert worker.slots.pixels(slot).flatten().tolist() == [200] * 12
    worker.end.sendall(frame(Submission(0, slot, 0, generation, 1)))
    assert worker.answer() == (slot, generation, 200)
    setup.until(lambda: not setup.receiver._in_flight[0])  # noqa: SLF001


def test_a_cancelled_image_in_the_queue_is_answered_without_the_batchers_lock(
    setup: _Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    [worker, _] = setup.workers
    batcher = setup.version.batcher
    lock_was_free: list[bool] = []
    send = Outbox.send

    def watched(outbox: Outbox, frame: bytes) -> None:
        other = threading.Thread(target=batcher.running_seconds, daemon=True)
        other.start()
        other.join(5)
        lock_was_free.append(not other.is_alive())
        send(outbox, frame)

    worker.submit(7)
    assert setup.engine.entered.wait(_TIMEOUT_S)
    leaving = worker.submit(8, which=1)
    setup.until(lambda: batcher.depth == 1)
    assert worker.slots.cancel(leaving.slot, leaving.generation)
    monkeypatch.setattr(Outbox, "send", watched)
    setup.engine.gate.set()

    frames = worker.read()
    while len(frames) < 2:
        frames += worker.read()
    assert frames[1] == Failure(0, leaving.slot, leaving.generation, None)
    assert lock_was_free == [True, True]


def test_a_cancelled_image_is_answered_when_its_batcher_is_abandoned(setup: _Setup) -> None:
    [worker, _] = setup.workers
    batcher = setup.version.batcher
    worker.submit(7)
    assert setup.engine.entered.wait(_TIMEOUT_S)
    leaving = worker.submit(8, which=1)
    setup.until(lambda: batcher.depth == 1)
    worker.slots.cancel(leaving.slot, leaving.generation)
    batcher.abandon(lambda: ModelDownError("tiny"))

    frames = worker.read()
    while len(frames) < 2:
        frames += worker.read()
    assert frames[1] == Failure(0, leaving.slot, leaving.generation, None)
    setup.until(lambda: not setup.receiver._in_flight[0])  # noqa: SLF001


def test_cancelling_an_image_does_not_cancel_the_next_one_of_its_slot(setup: _Setup) -> None:
    setup.engine.gate.set()
    [worker, _] = setup.workers
    first = worker.submit(7)
    worker.answer()
    worker.slots.claim(first.slot)
    worker.slots.cancel(first.slot, first.generation)

    assert not worker.slots.cancelled(first.slot, first.generation + 1)
    assert worker.slots.cancelled(first.slot, first.generation)
    assert worker.slots.cancel(first.slot, first.generation + 1)


def test_a_worker_that_submits_another_workers_slot_is_dropped_alone(setup: _Setup) -> None:
    setup.engine.gate.set()
    faulty, other = setup.workers
    faulty.end.sendall(frame(Submission(0, other.slot(), 0, 1, 1)))
    assert setup.engine.lost_one.wait(_TIMEOUT_S)
    assert faulty.end.recv(1) == b""
    submitted = other.submit(9)

    assert other.answer() == (submitted.slot, submitted.generation, 9)
    assert setup.engine.lost == [0]


def test_an_image_of_a_removed_version_fails_with_its_generation(setup: _Setup) -> None:
    [worker, _] = setup.workers
    setup.receiver.remove_version(setup.version)
    submitted = worker.submit(7)
    [failure] = worker.read()

    assert isinstance(failure, Failure)
    assert (failure.slot, failure.generation) == (submitted.slot, submitted.generation)
    assert isinstance(failure.error, ModelGoneError)
    assert not setup.receiver._in_flight[0]  # noqa: SLF001


def test_a_worker_that_reads_nothing_delays_no_other(setup: _Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than this test, so no thread may wait for it.
    monkeypatch.setattr(image_receiver, "_READ_TIMEOUT_S", 1000.0)
    setup.engine.gate.set()
    silent, other = setup.workers
    outbox = setup.receiver._workers[0].outbox  # noqa: SLF001
    while not outbox.full:
        outbox.send(bytes(1 << 16))
    silent.submit(7)
    setup.until(lambda: setup.engine.sizes == [1])
    submitted = other.submit(9)

    assert other.answer() == (submitted.slot, submitted.generation, 9)
    assert setup.engine.lost == []


def test_a_worker_that_reads_again_is_not_dropped_for_what_it_had_not_read(setup: _Setup) -> None:
    setup.engine.gate.set()
    [worker, _] = setup.workers
    outbox = setup.receiver._workers[0].outbox  # noqa: SLF001
    sent = 0
    while not outbox.full:
        outbox.send(bytes(1 << 16))
        sent += 1 << 16
    submitted = worker.submit(7)
    while sent:
        sent -= len(worker.end.recv(min(sent, 1 << 16)))

    assert worker.answer() == (submitted.slot, submitted.generation, 7)
    assert setup.engine.lost == []


def test_a_replacement_gets_the_slots_of_a_killed_worker_with_their_generations(setup: _Setup) -> None:
    killed, _ = setup.workers
    before = killed.submit(7)
    assert setup.engine.entered.wait(_TIMEOUT_S)
    killed.end.close()
    assert setup.engine.lost_one.wait(_TIMEOUT_S)
    # Its image is in a forward; until that ends, no other worker may use the slot.
    assert setup.receiver.uses(0)
    setup.engine.gate.set()
    setup.until(lambda: not setup.receiver.uses(0))
    here, there = socket.socketpair()
    setup.receiver.add_worker(0, here)
    replacement = _Worker(0, there, setup.version.descriptor)
    after = replacement.submit(9)

    assert replacement.answer() == (before.slot, before.generation + 1, 9)
    assert after.generation == before.generation + 1
    replacement.end.close()
