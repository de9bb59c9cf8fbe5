"""A worker whose engine process is this test: it answers what it likes, when it likes, and twice. No request gets an
answer that was meant for another."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.images.decode_memory import DecodeMemory
from models.images.decode_pool import DecodeJob, DecodePool, Done
from models.images.transforms import Transform
from models.inference.batch_item import ItemOutput
from models.interface.cancellation import NEVER_CANCELLED
from models.interface.errors import ModelDownError, ModelGoneError
from models.interface.image_limits import ImageLimits
from models.interface.request import InferenceRequest
from models.interface.results import ModelCard, Prediction
from models.interface.telemetry import BatchReport, NoTelemetry, StaleMessage
from models.networks.specs import ModelSpec
from models.workers.channel import Channel
from models.workers.messages import Announced, Facts, State, Taken
from models.workers.shared_slots import SharedSlots, SlotShape
from models.workers.wire_format import (
    SUBMISSION_BYTES,
    Answered,
    Failure,
    Submission,
    answers_frame,
    failure_frame,
    submissions,
)
from models.workers.worker_runtime import Place, WorkerOptions, WorkerRuntime

pytestmark = pytest.mark.anyio

_PATIENCE_S = 30
_REPORT = BatchReport("tiny", 1, "idle", 0.0, 0.1, 0.1, 0)


class _Counts(NoTelemetry):
    def __init__(self) -> None:
        self.dropped: list[StaleMessage] = []

    def message_dropped(self, message: StaleMessage) -> None:
        self.dropped.append(message)


class _Engine:
    """What the engine process has of one worker."""

    def __init__(self, spec: ModelSpec) -> None:
        self._transform = spec.build().transform
        self.shape = SlotShape(workers=1, each=4, side=self._transform.crop, dimensions=1, classes=0)
        self.slots: dict[int, SharedSlots] = {}
        self._descriptors: dict[int, int] = {}
        self._known: set[int] = set()
        self._number = 0
        self.counts = _Counts()
        self.reasons: list[str] = []
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.channel_ended = asyncio.Event()

    def connect(self) -> Place:
        """The ends of a worker, the first or one that takes the place of another."""
        self.images, its_images = socket.socketpair()
        end, its_end = socket.socketpair()
        self.images.setblocking(False)
        self._known.clear()
        self.channel = Channel(
            end, lambda message, _: self.heard.put_nowait(message), lambda _: self.channel_ended.set()
        )
        return Place(0, its_images, its_end)

    def announce(self, *versions: int) -> None:
        for version in versions:
            if version not in self.slots:
                descriptor = self._descriptors[version] = SharedSlots.create(self.shape)
                self.slots[version] = SharedSlots(descriptor, self.shape)
        new = [version for version in versions if version not in self._known]
        self._known.update(new)
        self._number += 1
        state = State(self._number, tuple(map(self._announced, versions)), frozenset(), ready=True, draining=False)
        self.channel.send(state, [self._descriptors[version] for version in new])

    async def submitted(self) -> Submission:
        """The next image that the worker hands in."""
        loop = asyncio.get_running_loop()
        record = await asyncio.wait_for(loop.sock_recv(self.images, SUBMISSION_BYTES), _PATIENCE_S)
        [submission] = submissions(record)
        return submission

    async def send(self, frames: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.images, frames)

    def answer(self, submitted: Submission, feature: float) -> bytes:
        """Write the answer into the slot; the frame that says so."""
        output = ItemOutput(np.array([feature], np.float32), None, None, finite=True)
        self.slots[submitted.version].write(submitted.slot, output)
        answered = Answered(submitted.slot, 0, submitted.generation, 0.0, finite=True)
        return answers_frame(submitted.version, _REPORT, [answered])

    def close(self) -> None:
        self.images.close()
        self.channel.close()
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def _announced(self, version: int) -> Announced:
        card = ModelCard(
            name="tiny",
            architecture="tiny",
            parameters=1,
            weight_bytes=1,
            input_size=self._transform.crop,
            classes=0,
            feature_dimensions=1,
            feature_shape=(1,),
            feature_layer=None,
            device="cpu",
            dtype="float32",
            backend="eager",
            fingerprint=f"of version {version}",
            training=False,
            load_seconds=0.0,
            version=version,
        )
        return Announced(version, card, Facts("tiny", self._transform, ()), self.shape, 4)


def _worker(engine: _Engine, place: Place) -> WorkerRuntime:
    limits = ImageLimits()
    options = WorkerOptions(
        decode_threads=2,
        decode_memory=DecodeMemory(limits.max_decode_bytes),
        limits=limits,
        deadline_s=_PATIENCE_S,
        longest_decode_s=60.0,
    )
    return WorkerRuntime(place, options, engine.counts, engine.reasons.append)


@asynccontextmanager
async def _started(spec: ModelSpec) -> AsyncIterator[tuple[WorkerRuntime, _Engine]]:
    engine = _Engine(spec)
    place = engine.connect()
    engine.announce(1)
    worker = _worker(engine, place)
    try:
        assert isinstance(await engine.heard.get(), Taken)
        yield worker, engine
    finally:
        assert await asyncio.to_thread(worker.close, _PATIENCE_S)
        engine.close()


def _ask(worker: WorkerRuntime, image: bytes) -> asyncio.Task[float]:
    async def feature() -> float:
        [result] = (await worker.predict(None, InferenceRequest("features", [image]))).results
        assert isinstance(result, Prediction)
        return float(result.features[0])

    return asyncio.create_task(feature())


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - what is waited for is told to nobody
            await asyncio.sleep(0.001)


async def _left_in_its_decode(
    worker: WorkerRuntime, image: bytes, entered: threading.Event, gate: threading.Event
) -> asyncio.Future[Any]:
    """A request whose image is being decoded, and whose client disconnects then."""
    gate.clear()
    entered.clear()
    leaving = _ask(worker, image)
    assert await asyncio.to_thread(entered.wait, _PATIENCE_S)
    leaving.cancel()
    return asyncio.gather(leaving, return_exceptions=True)


def _mapped() -> int:
    return Path("/proc/self/maps").read_text().count("gradless-slots")


@pytest.fixture
def gated_decode(monkeypatch: pytest.MonkeyPatch, gate: threading.Event, entered: threading.Event) -> None:
    """The gate at the end of each decode."""
    preprocess = DecodePool.preprocess

    def gated(pool: DecodePool, job: DecodeJob, transform: Transform, done: Done) -> None:
        def held(outcome: torch.Tensor | Exception | None) -> None:
            entered.set()
            assert gate.wait(_PATIENCE_S)
            done(outcome)

        preprocess(pool, job, transform, held)

    monkeypatch.setattr(DecodePool, "preprocess", gated)


@pytest.mark.usefixtures("gated_decode")
async def test_an_image_whose_client_disconnects_during_its_decode_is_not_submitted(
    tiny: ModelSpec, clock_png: bytes, gate: threading.Event, entered: threading.Event
) -> None:
    async with _started(tiny) as (worker, engine):
        await (await _left_in_its_decode(worker, clock_png, entered, gate))
        gate.set()
        staying = _ask(worker, clock_png)
        submitted = await engine.submitted()

        # The first that its slot has had.
        assert submitted.generation == 1
        await engine.send(engine.answer(submitted, 5.0))
        assert await staying == 5.0
        with pytest.raises(BlockingIOError):
            engine.images.recv(1)


@pytest.mark.usefixtures("gated_decode")
async def test_a_version_is_kept_until_the_last_decode_for_it_has_ended(
    tiny: ModelSpec, clock_png: bytes, gate: threading.Event, entered: threading.Event
) -> None:
    async with _started(tiny) as (worker, engine):
        left = await _left_in_its_decode(worker, clock_png, entered, gate)
        engine.announce(2)
        assert await engine.heard.get() == Taken(2)
        await left
        assert set(worker._versions) == {1, 2}  # noqa: SLF001
        gate.set()
        # Nothing else happens that would have it look.
        await _until(lambda: set(worker._versions) == {2})  # noqa: SLF001
        assert worker.cards["tiny"].version == 2


@pytest.mark.usefixtures("gated_decode")
async def test_a_client_that_disconnects_just_as_its_image_is_submitted_to_a_version_that_is_replaced_disturbs_nobody(
    tiny: ModelSpec,
    clock_png: bytes,
    gate: threading.Event,
    entered: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with _started(tiny) as (worker, engine):
        # As if each client disconnected after the last check before the queue.
        monkeypatch.setattr("models.inference.image_job.ImageJob.cancel_token", NEVER_CANCELLED)
        left = await _left_in_its_decode(worker, clock_png, entered, gate)
        engine.announce(2)
        assert await engine.heard.get() == Taken(2)
        await left
        gate.set()
        late = await engine.submitted()
        assert late.version == 1
        staying = _ask(worker, clock_png)
        submitted = await engine.submitted()
        gone = failure_frame(Failure(1, late.slot, late.generation, ModelGoneError("tiny")))
        await engine.send(gone + engine.answer(submitted, 5.0))

        assert await staying == 5.0
        assert engine.counts.dropped == []
        await _until(lambda: set(worker._versions) == {2})  # noqa: SLF001


@pytest.mark.parametrize("kind", ["answer", "failure"])
async def test_a_frame_of_a_version_that_is_unknown_is_dropped_and_counted_and_those_around_it_are_heard(
    tiny: ModelSpec, clock_png: bytes, kind: str
) -> None:
    async with _started(tiny) as (worker, engine):
        first, second = _ask(worker, clock_png), _ask(worker, clock_png)
        one, other = await engine.submitted(), await engine.submitted()
        unknown = (
            answers_frame(77, _REPORT, [Answered(one.slot, 0, one.generation, 0.0, finite=True)])
            if kind == "answer"
            else failure_frame(Failure(77, one.slot, one.generation, None))
        )
        await engine.send(engine.answer(one, 1.0) + unknown + engine.answer(other, 2.0))

        assert sorted([await first, await second]) == [1.0, 2.0]
        assert engine.counts.dropped == ["answer"]
        assert engine.reasons == []
        third = _ask(worker, clock_png)
        await engine.send(engine.answer(await engine.submitted(), 3.0))
        assert await third == 3.0


@pytest.mark.parametrize("late", ["answer", "failure", "abandoned"])
async def test_an_answer_that_comes_again_reaches_no_other_request_in_its_slot(
    tiny: ModelSpec, clock_png: bytes, late: str
) -> None:
    async with _started(tiny) as (worker, engine):
        first = _ask(worker, clock_png)
        before = await engine.submitted()
        answer = engine.answer(before, 1.0)
        await engine.send(answer)
        assert await first == 1.0
        second = _ask(worker, clock_png)
        after = await engine.submitted()
        assert after.slot == before.slot
        error = ModelGoneError("tiny") if late == "failure" else None
        failure = failure_frame(Failure(1, before.slot, before.generation, error))
        await engine.send(answer if late == "answer" else failure)
        await _until(lambda: engine.counts.dropped == ["answer"])

        assert not second.done()
        await engine.send(engine.answer(after, 2.0))
        assert await second == 2.0
        assert engine.reasons == []


async def test_an_answer_for_a_worker_that_was_killed_reaches_no_request_of_the_one_that_has_its_slots(
    tiny: ModelSpec, clock_png: bytes
) -> None:
    async with _started(tiny) as (killed, engine):
        lost = _ask(killed, clock_png)
        before = await engine.submitted()
        # As the kernel does for a process that is killed.
        engine.images.close()
        engine.channel.close()
        with pytest.raises(ModelDownError):
            await lost
        place = engine.connect()
        engine.announce(1)
        replacement = _worker(engine, place)
        try:
            request = _ask(replacement, clock_png)
            after = await engine.submitted()
            assert (after.slot, after.generation) == (before.slot, before.generation + 1)
            await engine.send(engine.answer(before, 1.0))
            await _until(lambda: engine.counts.dropped == ["answer"])
            assert not request.done()
            await engine.send(engine.answer(after, 2.0))
            assert await request == 2.0
        finally:
            assert await asyncio.to_thread(replacement.close, _PATIENCE_S)


async def test_a_worker_that_cannot_read_its_answers_ends_and_fails_its_requests(
    tiny: ModelSpec, clock_png: bytes
) -> None:
    async with _started(tiny) as (worker, engine):
        requests = [_ask(worker, clock_png) for _ in range(3)]
        submitted = [await engine.submitted() for _ in requests]
        broken = b"\x03\0\0\0\x01abc"
        await engine.send(engine.answer(submitted[0], 1.0) + broken + engine.answer(submitted[1], 2.0))

        ends = await asyncio.gather(*requests, return_exceptions=True)
        assert [end for end in ends if not isinstance(end, ModelDownError)] == [1.0]
        assert not worker.ready
        [reason] = engine.reasons
        assert reason.startswith("answers cannot be read: UnpicklingError")
        # The engine process hears by both sockets.
        await asyncio.wait_for(engine.channel_ended.wait(), _PATIENCE_S)
        assert engine.images.recv(1) == b""
        with pytest.raises(ModelDownError):
            await _ask(worker, clock_png)


async def test_a_worker_that_cannot_act_on_what_is_announced_ends_and_fails_its_requests(
    tiny: ModelSpec, clock_png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _started(tiny) as (worker, engine):
        request = _ask(worker, clock_png)
        await engine.submitted()
        # As where a process may open no more files: the descriptor does not arrive.
        take = worker._take  # noqa: SLF001
        monkeypatch.setattr(worker, "_take", lambda state, _: take(state, deque()))
        engine.announce(1, 2)

        with pytest.raises(ModelDownError):
            await request
        [reason] = engine.reasons
        assert reason.startswith("the engine process cannot be followed: OSError: the memory of tiny")
        await asyncio.wait_for(engine.channel_ended.wait(), _PATIENCE_S)
        assert engine.images.recv(1) == b""
        assert engine.heard.empty()
