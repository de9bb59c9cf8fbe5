"""An HTTP worker whose engine process is the test, which sends late, repeated and wrong answers. No request gets the
answer of another."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from models.images.decode_pool import DecodeJob, DecodePool, Done
from models.images.preprocessing import Transform
from models.inference.image_job import ItemOutput
from models.interface.errors import ModelDownError, ModelGoneError
from models.interface.request import NEVER_CANCELLED, InferenceRequest, Parameters
from models.interface.results import ModelCard, Prediction
from models.interface.telemetry import BatchReport, InstanceId, StaleMessage, Telemetry
from models.networks.specs import ModelSpec
from models.serving.model_instance import ServingOptions
from models.workers.channel import Channel, socket_pair
from models.workers.messages import (
    Answers,
    ServedVersion,
    ServingState,
    StateApplied,
)
from models.workers.shared_slots import SharedSlots, SlotShape
from models.workers.worker_runtime import WorkerRuntime

pytestmark = pytest.mark.anyio

_TIMEOUT_S = 30
_NO_CLASSES: Any = np.empty(0)
_REPORT = BatchReport(InstanceId("tiny", "cpu"), 1, "idle", 0.0, 0.1, 0.1, 0)


class _Submission(NamedTuple):
    """A submission that the engine process has received."""

    version: int
    slot: int
    generation: int
    parameters: Parameters


class _Counts(Telemetry):
    def __init__(self) -> None:
        self.dropped: list[StaleMessage] = []

    def message_dropped(self, message: StaleMessage) -> None:
        self.dropped.append(message)


class _Engine:
    """The engine process's side of one worker."""

    def __init__(self, spec: ModelSpec) -> None:
        self._transform = spec.build().transform
        self.shape = SlotShape(workers=1, each=4, side=self._transform.crop, dimensions=1, classes=0)
        self.slots: dict[int, SharedSlots] = {}
        self._descriptors: dict[int, int] = {}
        self._known: set[int] = set()
        self._number = 0
        self.counts = _Counts()
        self.reasons: list[str] = []
        self.received: asyncio.Queue[Any] = asyncio.Queue()
        self.channel_ended = asyncio.Event()

    def connect(self) -> socket.socket:
        """Return the end of a worker, the first one or a replacement."""
        end, its_end = socket_pair()
        self.submissions: asyncio.Queue[_Submission] = asyncio.Queue()
        self.channel_ended.clear()
        self._known.clear()
        self.channel = Channel(end, self._on_message, lambda _: self.channel_ended.set())
        return its_end

    def announce(self, *versions: int) -> None:
        for version in versions:
            if version not in self.slots:
                descriptor = self._descriptors[version] = SharedSlots.create(self.shape)
                self.slots[version] = SharedSlots(descriptor, self.shape)
        new = [version for version in versions if version not in self._known]
        self._known.update(new)
        self._number += 1
        state = ServingState(self._number, tuple(map(self._served, versions)), frozenset(), ready=True, draining=False)
        self.channel.send(state, [self._descriptors[version] for version in new])

    async def submitted(self) -> _Submission:
        """Return the next image that the worker submits."""
        return await asyncio.wait_for(self.submissions.get(), _TIMEOUT_S)

    def send(self, *messages: Answers) -> None:
        for message in messages:
            self.channel.send(message)

    def _on_message(self, message: Any, _descriptors: list[int]) -> None:
        if isinstance(message, tuple):
            self.submissions.put_nowait(_Submission(*message))
        else:
            self.received.put_nowait(message)

    def answer(self, submitted: _Submission, feature: float) -> Answers:
        """Write the answer into the slot. Return the message for the worker."""
        output = ItemOutput(np.array([feature], np.float32), _NO_CLASSES, _NO_CLASSES, finite=True)
        self.slots[submitted.version].write(submitted.slot, output)
        return Answers(submitted.version, _REPORT, [(submitted.slot, submitted.generation, (0, 0.0, True))])

    def close(self) -> None:
        self.channel.close()
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def _served(self, version: int) -> ServedVersion:
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
            mean=self._transform.mean,
            std=self._transform.std,
        )
        return ServedVersion(version, card, self._transform, (), self.shape, 4)


def _worker(engine: _Engine, end: socket.socket) -> WorkerRuntime:
    options = ServingOptions(deadline_s=_TIMEOUT_S)
    decode_pool = DecodePool(2, options.limits, longest_wait_s=_TIMEOUT_S)
    return WorkerRuntime(0, end, options, decode_pool, engine.counts, engine.reasons.append)


@asynccontextmanager
async def _started(spec: ModelSpec) -> AsyncIterator[tuple[WorkerRuntime, _Engine]]:
    engine = _Engine(spec)
    end = engine.connect()
    engine.announce(1)
    worker = _worker(engine, end)
    try:
        assert isinstance(await engine.received.get(), StateApplied)
        yield worker, engine
    finally:
        assert await asyncio.to_thread(worker.close, _TIMEOUT_S)
        engine.close()


def _predict(worker: WorkerRuntime, image: bytes) -> asyncio.Task[float]:
    async def feature() -> float:
        [result] = (await worker.predict(None, InferenceRequest("features", [image]))).results
        assert isinstance(result, Prediction)
        return float(result.features[0])

    return asyncio.create_task(feature())


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(_TIMEOUT_S):
        while not holds():  # noqa: ASYNC110 - the condition is not reported
            await asyncio.sleep(0.001)


async def _cancelled_in_its_decode(
    worker: WorkerRuntime, image: bytes, entered: threading.Event, gate: threading.Event
) -> asyncio.Future[Any]:
    """Start a request, and cancel it while its image is being decoded."""
    gate.clear()
    entered.clear()
    cancelled = _predict(worker, image)
    assert await asyncio.to_thread(entered.wait, _TIMEOUT_S)
    cancelled.cancel()
    return asyncio.gather(cancelled, return_exceptions=True)


def _mapped() -> int:
    return Path("/proc/self/maps").read_text().count("gradless-slots")


@pytest.fixture
def gated_decode(monkeypatch: pytest.MonkeyPatch, gate: threading.Event, entered: threading.Event) -> None:
    """Have each decode wait at the gate at its end."""
    decode = DecodePool.decode

    def gated(pool: DecodePool, job: DecodeJob, transform: Transform, done: Done) -> None:
        def held(outcome: torch.Tensor | Exception | None) -> None:
            entered.set()
            assert gate.wait(_TIMEOUT_S)
            done(outcome)

        decode(pool, job, transform, held)

    monkeypatch.setattr(DecodePool, "decode", gated)


@pytest.mark.usefixtures("gated_decode")
async def test_an_image_whose_client_disconnects_during_its_decode_is_not_submitted(
    tiny: ModelSpec, clock_png: bytes, gate: threading.Event, entered: threading.Event
) -> None:
    async with _started(tiny) as (worker, engine):
        await (await _cancelled_in_its_decode(worker, clock_png, entered, gate))
        gate.set()
        staying = _predict(worker, clock_png)
        submitted = await engine.submitted()

        # It is the first image of its slot.
        assert submitted.generation == 1
        engine.send(engine.answer(submitted, 5.0))
        assert await staying == 5.0
        assert engine.submissions.empty()


@pytest.mark.usefixtures("gated_decode")
async def test_a_replaced_version_is_kept_until_its_last_decode_has_ended(
    tiny: ModelSpec, clock_png: bytes, gate: threading.Event, entered: threading.Event
) -> None:
    async with _started(tiny) as (worker, engine):
        cancelled = await _cancelled_in_its_decode(worker, clock_png, entered, gate)
        engine.announce(2)
        assert await engine.received.get() == StateApplied(2)
        await cancelled
        assert set(worker._versions) == {1, 2}  # noqa: SLF001
        gate.set()
        # No other event has the worker remove versions.
        await _until(lambda: set(worker._versions) == {2})  # noqa: SLF001
        assert worker.cards["tiny"].version == 2


@pytest.mark.usefixtures("gated_decode")
async def test_a_client_that_disconnects_as_its_image_is_submitted_to_a_replaced_version_affects_no_other(
    tiny: ModelSpec,
    clock_png: bytes,
    gate: threading.Event,
    entered: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with _started(tiny) as (worker, engine):
        # As if each client disconnected after the last check.
        monkeypatch.setattr("models.inference.image_job.ImageJob.cancel_token", NEVER_CANCELLED)
        cancelled = await _cancelled_in_its_decode(worker, clock_png, entered, gate)
        engine.announce(2)
        assert await engine.received.get() == StateApplied(2)
        await cancelled
        gate.set()
        late = await engine.submitted()
        assert late.version == 1
        staying = _predict(worker, clock_png)
        submitted = await engine.submitted()
        gone = Answers(1, None, [(late.slot, late.generation, ModelGoneError("tiny"))])
        engine.send(gone, engine.answer(submitted, 5.0))

        assert await staying == 5.0
        assert engine.counts.dropped == []
        await _until(lambda: set(worker._versions) == {2})  # noqa: SLF001


@pytest.mark.parametrize("kind", ["answer", "failure"])
async def test_a_message_for_an_unknown_version_is_dropped_and_counted_and_its_neighbours_are_processed(
    tiny: ModelSpec, clock_png: bytes, kind: str
) -> None:
    async with _started(tiny) as (worker, engine):
        first, second = _predict(worker, clock_png), _predict(worker, clock_png)
        one, other = await engine.submitted(), await engine.submitted()
        unknown = (
            Answers(77, _REPORT, [(one.slot, one.generation, (0, 0.0, True))])
            if kind == "answer"
            else Answers(77, None, [(one.slot, one.generation, None)])
        )
        engine.send(engine.answer(one, 1.0), unknown, engine.answer(other, 2.0))

        assert sorted([await first, await second]) == [1.0, 2.0]
        assert engine.counts.dropped == ["answer"]
        assert engine.reasons == []
        third = _predict(worker, clock_png)
        engine.send(engine.answer(await engine.submitted(), 3.0))
        assert await third == 3.0


@pytest.mark.parametrize("late", ["answer", "failure", "cancelled"])
async def test_a_repeated_answer_reaches_no_other_request_of_its_slot(
    tiny: ModelSpec, clock_png: bytes, late: str
) -> None:
    async with _started(tiny) as (worker, engine):
        first = _predict(worker, clock_png)
        before = await engine.submitted()
        answer = engine.answer(before, 1.0)
        engine.send(answer)
        assert await first == 1.0
        second = _predict(worker, clock_png)
        after = await engine.submitted()
        assert after.slot == before.slot
        error = ModelGoneError("tiny") if late == "failure" else None
        failure = Answers(1, None, [(before.slot, before.generation, error)])
        engine.send(answer if late == "answer" else failure)
        await _until(lambda: engine.counts.dropped == ["answer"])

        assert not second.done()
        engine.send(engine.answer(after, 2.0))
        assert await second == 2.0
        assert engine.reasons == []


async def test_an_answer_for_a_killed_worker_reaches_no_request_of_its_replacement(
    tiny: ModelSpec, clock_png: bytes
) -> None:
    async with _started(tiny) as (killed, engine):
        lost = _predict(killed, clock_png)
        before = await engine.submitted()
        # The kernel closes the sockets of a killed process.
        engine.channel.close()
        with pytest.raises(ModelDownError):
            await lost
        end = engine.connect()
        engine.announce(1)
        replacement = _worker(engine, end)
        try:
            request = _predict(replacement, clock_png)
            after = await engine.submitted()
            assert (after.slot, after.generation) == (before.slot, before.generation + 1)
            engine.send(engine.answer(before, 1.0))
            await _until(lambda: engine.counts.dropped == ["answer"])
            assert not request.done()
            engine.send(engine.answer(after, 2.0))
            assert await request == 2.0
        finally:
            assert await asyncio.to_thread(replacement.close, _TIMEOUT_S)


async def test_a_worker_that_cannot_read_its_answers_ends_and_fails_its_requests(
    tiny: ModelSpec, clock_png: bytes
) -> None:
    async with _started(tiny) as (worker, engine):
        requests = [_predict(worker, clock_png) for _ in range(3)]
        submitted = [await engine.submitted() for _ in requests]
        engine.send(engine.answer(submitted[0], 1.0))
        engine.channel._socket.send(bytes(5) + b"abc")  # noqa: SLF001 - a packet without a pickle
        engine.send(engine.answer(submitted[1], 2.0))

        ends = await asyncio.gather(*requests, return_exceptions=True)
        assert [end for end in ends if not isinstance(end, ModelDownError)] == [1.0]
        assert not worker.ready
        [reason] = engine.reasons
        assert reason.startswith("a message of the engine process cannot be processed: UnpicklingError")
        await asyncio.wait_for(engine.channel_ended.wait(), _TIMEOUT_S)
        with pytest.raises(ModelDownError):
            await _predict(worker, clock_png)


async def test_a_worker_that_cannot_apply_a_state_ends_and_fails_its_requests(
    tiny: ModelSpec, clock_png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _started(tiny) as (worker, engine):
        request = _predict(worker, clock_png)
        await engine.submitted()
        # The descriptor does not arrive if the process may open no more files.
        apply = worker._apply  # noqa: SLF001
        monkeypatch.setattr(worker, "_apply", lambda state, _: apply(state, []))
        engine.announce(1, 2)

        with pytest.raises(ModelDownError):
            await request
        [reason] = engine.reasons
        assert reason.startswith("a message of the engine process cannot be processed: OSError: the slots of tiny")
        await asyncio.wait_for(engine.channel_ended.wait(), _TIMEOUT_S)
        assert engine.received.empty()
