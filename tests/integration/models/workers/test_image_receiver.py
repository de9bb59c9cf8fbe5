"""The engine process's end of a worker's socket for images. The worker is this test: it may send what no worker
should."""

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
from models.interface.request import InferenceRequest
from models.interface.telemetry import StaleMessage
from models.scheduling.batcher import Batcher
from models.workers import image_receiver as desk_module
from models.workers.image_receiver import ImageReceiver, Version
from models.workers.outbox import Outbox
from models.workers.shared_slots import SharedSlots, SlotShape
from models.workers.wire_format import Answers, Failure, Frames, Submission, submission

_PATIENCE_S = 30
_SHAPE = SlotShape(workers=2, each=4, side=2, dimensions=1, classes=0)


@dataclass
class _Engine:
    """A forward that gives the first byte of each image, and waits at a gate."""

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
        assert self.gate.wait(_PATIENCE_S)
        return [ItemOutput(np.array([first], np.float32), None, None, finite=True) for first in firsts]

    def lose(self, worker: int, _end: socket.socket) -> None:
        self.lost.append(worker)
        self.lost_one.set()


class _Worker:
    """What a worker has: its end of the socket, and a mapping of the slots of its own."""

    def __init__(self, number: int, end: socket.socket, descriptor: int) -> None:
        end.settimeout(_PATIENCE_S)
        self.number, self.end = number, end
        self.slots = SharedSlots(descriptor, _SHAPE)
        self.frames = Frames()

    def slot(self, which: int = 0) -> int:
        return self.slots.of_worker(self.number)[which]

    def hand_in(self, pixel: int, which: int = 0) -> Submission:
        """Put an image of that first byte into a slot, and submit it."""
        generation = self.slots.claim(self.slot(which))
        self.slots.pixels(self.slot(which)).fill_(pixel)
        submitted = Submission(0, self.slot(which), generation, InferenceRequest("features", fairness_key=1))
        self.end.sendall(submission(submitted))
        return submitted

    def read(self) -> list[Answers | Failure]:
        """The next frames, at least one."""
        frames: list[Answers | Failure] = []
        while not frames:
            piece = self.end.recv(1 << 18)
            assert piece, "the desk has closed its end"
            frames = list(self.frames.feed(piece))
        return frames

    def answer(self) -> tuple[int, int, float]:
        """Slot, generation and feature of the next frame, which has one answer."""
        [frame] = self.read()
        assert isinstance(frame, Answers)
        [answered] = frame.answers
        return answered.slot, answered.generation, float(self.slots.read(answered.slot, 0, finite=True).features[0])


@dataclass
class _Desk:
    desk: ImageReceiver
    engine: _Engine
    version: Version
    workers: list[_Worker]

    def until(self, holds: Callable[[], bool]) -> None:
        """What is waited for is told to nobody."""
        waiting = threading.Event()
        for _ in range(_PATIENCE_S * 1000):
            if holds():
                return
            waiting.wait(0.001)
        raise AssertionError("it never came")


@pytest.fixture
def at_desk() -> Iterator[_Desk]:
    engine = _Engine()
    desk = ImageReceiver(engine.lose, engine.failures.append, engine.stale.append)
    descriptor = SharedSlots.create(_SHAPE)
    batcher: Batcher[BatchItem, ItemOutput] = Batcher(engine.forward, name="tiny", on_batch=desk.batch_over)
    version = Version(0, "tiny", descriptor, SharedSlots(descriptor, _SHAPE), batcher)
    desk.open_for(version)
    workers = []
    for number in range(2):
        here, there = socket.socketpair()
        desk.add(number, here)
        workers.append(_Worker(number, there, descriptor))
    yield _Desk(desk, engine, version, workers)
    engine.gate.set()
    assert batcher.close(_PATIENCE_S)
    desk.close()
    os.close(descriptor)
    for worker in workers:
        worker.end.close()
    assert engine.failures == []


def test_an_image_is_answered_with_its_slots_generation(at_desk: _Desk) -> None:
    at_desk.engine.gate.set()
    [worker, _] = at_desk.workers
    for pixel in (7, 8):
        submitted = worker.hand_in(pixel)
        assert worker.answer() == (submitted.slot, submitted.generation, pixel)


def test_a_submission_that_is_repeated_is_dropped_and_counted(at_desk: _Desk) -> None:
    [worker, _] = at_desk.workers
    submitted = worker.hand_in(7)
    assert at_desk.engine.entered.wait(_PATIENCE_S)
    worker.end.sendall(submission(submitted))
    at_desk.until(lambda: at_desk.engine.stale == ["submission"])
    at_desk.engine.gate.set()
    assert worker.answer() == (submitted.slot, submitted.generation, 7)
    worker.end.sendall(submission(submitted))
    other = worker.hand_in(9)

    assert worker.answer() == (other.slot, other.generation, 9)
    assert at_desk.engine.stale == ["submission", "submission"]
    assert at_desk.engine.sizes == [1, 1]


def test_the_answer_of_a_slots_earlier_image_is_not_written_over_the_next_ones_pixels(at_desk: _Desk) -> None:
    [worker, _] = at_desk.workers
    worker.hand_in(7)
    assert at_desk.engine.entered.wait(_PATIENCE_S)
    # No worker does so while the engine process has an image of the slot.
    slot = worker.slot()
    generation = worker.slots.claim(slot)
    worker.slots.pixels(slot).fill_(200)
    at_desk.engine.gate.set()
    at_desk.until(lambda: at_desk.engine.stale == ["answer"])

    assert worker.slots.pixels(slot).flatten().tolist() == [200] * 12
    worker.end.sendall(submission(Submission(0, slot, generation, InferenceRequest("features", fairness_key=1))))
    assert worker.answer() == (slot, generation, 200)
    at_desk.until(lambda: not at_desk.desk._inside[0])  # noqa: SLF001


def test_an_image_that_is_abandoned_in_the_queue_is_let_go_without_the_batchers_lock(
    at_desk: _Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    [worker, _] = at_desk.workers
    batcher = at_desk.version.batcher
    others_went_on: list[bool] = []
    send = Outbox.send

    def watched(outbox: Outbox, frame: bytes) -> None:
        other = threading.Thread(target=batcher.running_seconds, daemon=True)
        other.start()
        other.join(5)
        others_went_on.append(not other.is_alive())
        send(outbox, frame)

    worker.hand_in(7)
    assert at_desk.engine.entered.wait(_PATIENCE_S)
    leaving = worker.hand_in(8, which=1)
    at_desk.until(lambda: batcher.depth == 1)
    assert worker.slots.abandon(leaving.slot, leaving.generation)
    monkeypatch.setattr(Outbox, "send", watched)
    at_desk.engine.gate.set()

    frames = worker.read()
    while len(frames) < 2:
        frames += worker.read()
    assert frames[1] == Failure(0, leaving.slot, leaving.generation, None)
    assert others_went_on == [True, True]


def test_an_image_that_is_abandoned_is_let_go_when_its_batcher_is(at_desk: _Desk) -> None:
    [worker, _] = at_desk.workers
    batcher = at_desk.version.batcher
    worker.hand_in(7)
    assert at_desk.engine.entered.wait(_PATIENCE_S)
    leaving = worker.hand_in(8, which=1)
    at_desk.until(lambda: batcher.depth == 1)
    worker.slots.abandon(leaving.slot, leaving.generation)
    batcher.abandon(lambda: ModelDownError("tiny"))

    frames = worker.read()
    while len(frames) < 2:
        frames += worker.read()
    assert frames[1] == Failure(0, leaving.slot, leaving.generation, None)
    at_desk.until(lambda: not at_desk.desk._inside[0])  # noqa: SLF001


def test_abandoning_an_image_does_not_abandon_the_next_one_of_its_slot(at_desk: _Desk) -> None:
    at_desk.engine.gate.set()
    [worker, _] = at_desk.workers
    first = worker.hand_in(7)
    worker.answer()
    worker.slots.claim(first.slot)
    worker.slots.abandon(first.slot, first.generation)

    assert not worker.slots.abandoned(first.slot, first.generation + 1)
    assert worker.slots.abandoned(first.slot, first.generation)
    assert worker.slots.abandon(first.slot, first.generation + 1)


def test_a_worker_that_hands_in_what_is_not_its_own_is_lost_alone(at_desk: _Desk) -> None:
    at_desk.engine.gate.set()
    faulty, other = at_desk.workers
    faulty.end.sendall(submission(Submission(0, other.slot(), 1, InferenceRequest("features", fairness_key=1))))
    assert at_desk.engine.lost_one.wait(_PATIENCE_S)
    assert faulty.end.recv(1) == b""
    submitted = other.hand_in(9)

    assert other.answer() == (submitted.slot, submitted.generation, 9)
    assert at_desk.engine.lost == [0]


def test_an_image_of_a_version_that_is_gone_is_refused_by_its_generation(at_desk: _Desk) -> None:
    [worker, _] = at_desk.workers
    at_desk.desk.close_for(at_desk.version)
    submitted = worker.hand_in(7)
    [failure] = worker.read()

    assert isinstance(failure, Failure)
    assert (failure.slot, failure.generation) == (submitted.slot, submitted.generation)
    assert isinstance(failure.error, ModelGoneError)
    assert not at_desk.desk._inside[0]  # noqa: SLF001


def test_a_worker_that_reads_nothing_holds_up_no_other(at_desk: _Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than this test: nobody may wait for it.
    monkeypatch.setattr(desk_module, "_PATIENCE_S", 1000.0)
    at_desk.engine.gate.set()
    silent, other = at_desk.workers
    outbox = at_desk.desk._workers[0].outbox  # noqa: SLF001
    while not outbox.full:
        outbox.send(bytes(1 << 16))
    silent.hand_in(7)
    at_desk.until(lambda: at_desk.engine.sizes == [1])
    submitted = other.hand_in(9)

    assert other.answer() == (submitted.slot, submitted.generation, 9)
    assert at_desk.engine.lost == []


def test_a_worker_that_goes_on_reading_is_not_given_up_for_what_it_had_not_read(at_desk: _Desk) -> None:
    at_desk.engine.gate.set()
    [worker, _] = at_desk.workers
    outbox = at_desk.desk._workers[0].outbox  # noqa: SLF001
    sent = 0
    while not outbox.full:
        outbox.send(bytes(1 << 16))
        sent += 1 << 16
    submitted = worker.hand_in(7)
    while sent:
        sent -= len(worker.end.recv(min(sent, 1 << 16)))

    assert worker.answer() == (submitted.slot, submitted.generation, 7)
    assert at_desk.engine.lost == []


def test_slots_of_a_worker_that_was_killed_go_to_another_with_their_generations(at_desk: _Desk) -> None:
    killed, _ = at_desk.workers
    before = killed.hand_in(7)
    assert at_desk.engine.entered.wait(_PATIENCE_S)
    killed.end.close()
    assert at_desk.engine.lost_one.wait(_PATIENCE_S)
    # Its image is in a forward: until that is over, no other worker may have the slot.
    assert at_desk.desk.busy_with(0)
    at_desk.engine.gate.set()
    at_desk.until(lambda: not at_desk.desk.busy_with(0))
    here, there = socket.socketpair()
    at_desk.desk.add(0, here)
    replacement = _Worker(0, there, at_desk.version.descriptor)
    after = replacement.hand_in(9)

    assert replacement.answer() == (before.slot, before.generation + 1, 9)
    assert after.generation == before.generation + 1
    replacement.end.close()
