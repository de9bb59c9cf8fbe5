"""HTTP workers decode, and one engine process answers them all as it would alone. Here both are in one process, with
the same memory and sockets between them."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradless.records import ComparisonOptions, Progress
from models.images.decode_pool import DecodePool
from models.inference.image_job import BatchItem
from models.interface.errors import (
    ComparisonRunningError,
    DrainingError,
    ImageError,
    LoadTimeoutError,
    ModelDownError,
    ModelNotLoadedError,
    OverloadedError,
    UndecodableImageError,
    UnknownModelError,
)
from models.interface.request import InferenceRequest, ReadyPixels
from models.interface.results import Answer, Prediction
from models.interface.telemetry import BatchReport, Outcome, Stage, Task, Telemetry
from models.networks.specs import Classifier, ModelSpec
from models.scheduling.batcher import Batcher
from models.serving.model_instance import ServingOptions
from models.serving.runtime import LocalRuntime
from models.workers.engine_server import EngineServer
from models.workers.worker_runtime import WorkerRuntime

pytestmark = pytest.mark.anyio

_TIMEOUT_S = 30

HandedOver = Callable[[int], Awaitable[None]]


class _Counts(Telemetry):
    """Counts of a worker, or of the engine process."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.batches: list[int] = []
        self.cancelled: list[Stage] = []
        self.devices: dict[str, Sequence[str]] = {}

    def images_done(self, model: str, task: Task, outcome: Outcome, count: int = 1) -> None:  # noqa: ARG002
        self.outcomes[outcome] += count

    def batch_ran(self, report: BatchReport) -> None:
        self.batches.append(report.size)

    def image_cancelled(self, model: str, stage: Stage, saved_seconds: float) -> None:  # noqa: ARG002
        self.cancelled.append(stage)

    def model_shown(self, model: str, devices: Sequence[str]) -> None:
        self.devices[model] = devices

    def model_gone(self, model: str) -> None:
        self.devices.pop(model, None)


@dataclass
class _Service:
    engine: EngineServer
    engine_counts: _Counts
    workers: list[WorkerRuntime]
    counts: list[_Counts]
    sockets: list[socket.socket]
    reasons: list[str]
    lost: list[int]
    # Formats in which the engine process has built its metrics.
    scraped: list[str]


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(_TIMEOUT_S):
        while not holds():  # noqa: ASYNC110 - the condition is not reported
            await asyncio.sleep(0.001)


@asynccontextmanager
async def _started(spec: ModelSpec, workers: int = 2, **options: Any) -> AsyncIterator[_Service]:
    serving = ServingOptions(**{"models": [spec], "device": "cpu", "backend": "eager", "decode_threads": 2, **options})
    service = _Service(None, _Counts(), [], [], [], [], [], [])  # type: ignore[arg-type]  # the engine is built below

    def own_metrics(accept: str) -> str:
        service.scraped.append(accept)
        return f"engine {accept}"

    service.engine = EngineServer(
        serving,
        2 * workers,
        service.engine_counts,
        own_metrics,
        give_up=service.reasons.append,
        on_lost=service.lost.append,
        on_fault=lambda error: service.reasons.append(str(error)),
    )
    running = asyncio.create_task(service.engine.run())
    try:
        for number in range(workers):
            its_end = service.engine.add(number)
            service.counts.append(_Counts())
            service.sockets.append(its_end)
            service.workers.append(
                WorkerRuntime(
                    number,
                    its_end,
                    serving,
                    DecodePool(2, serving.limits, longest_wait_s=serving.deadline_s),
                    service.counts[-1],
                    service.reasons.append,
                )
            )
        # Until the engine process knows that they know what is served.
        await _until(lambda: all(each.applied >= 0 for each in service.engine._workers.values()))  # noqa: SLF001
        yield service
    finally:
        for worker in service.workers:
            assert await asyncio.to_thread(worker.close, _TIMEOUT_S)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        assert await service.engine.close(_TIMEOUT_S)


async def _predict(worker: WorkerRuntime, *images: bytes, task: Task = "classify", top_k: int = 3) -> Answer:
    return await worker.predict(None, InferenceRequest(task, images, top_k=top_k))


def _contents(answer: Answer) -> list[Any]:
    return [
        (result.classes, result.features.tolist()) if isinstance(result, Prediction) else str(result)
        for result in answer.results
    ]


@pytest.mark.parametrize("top_k", [0, 2])
async def test_ready_pixels_and_all_probabilities_pass_through_the_slots(
    tiny: ModelSpec, serving: LocalRuntime, clock_png: bytes, top_k: int
) -> None:
    ready = ReadyPixels(np.arange(3 * 32 * 32).reshape(3, 32, 32) % 256)
    request = InferenceRequest("classify", [ready, clock_png], top_k, all_probabilities=True)
    alone = await serving.predict(None, request)

    async with _started(tiny, workers=1) as service:
        answer = await service.workers[0].predict(None, request)

    for one, other in zip(answer.results, alone.results, strict=True):
        assert isinstance(one, Prediction)
        assert isinstance(other, Prediction)
        assert one.all_probabilities is not None
        assert other.all_probabilities is not None
        np.testing.assert_allclose(one.all_probabilities, other.all_probabilities, atol=1e-6)
        np.testing.assert_allclose(one.features, other.features, atol=1e-5)
        assert [scored.index for scored in one.classes] == [scored.index for scored in other.classes]
        assert [one.all_probabilities[scored.index] for scored in one.classes] == [
            scored.probability for scored in one.classes
        ]


@pytest.mark.parametrize(("task", "top_k"), [("classify", 3), ("classify", 1000), ("features", 0)])
async def test_the_answer_is_the_answer_of_one_process(
    tiny: ModelSpec, serving: LocalRuntime, clock_png: bytes, clock_jpeg: bytes, task: Task, top_k: int
) -> None:
    images = [clock_png, clock_jpeg]
    alone = await serving.predict(None, InferenceRequest(task, images, top_k=top_k))

    async with _started(tiny) as service:
        for worker in service.workers:
            answer = await _predict(worker, *images, task=task, top_k=top_k)
            assert (answer.model, answer.fingerprint, answer.shape) == (alone.model, alone.fingerprint, alone.shape)
            for one, other in zip(answer.results, alone.results, strict=True):
                assert isinstance(one, Prediction)
                assert isinstance(other, Prediction)
                assert [scored.label for scored in one.classes] == [scored.label for scored in other.classes]
                assert len(one.classes) == min(top_k, 10)
                np.testing.assert_allclose(one.features, other.features, atol=1e-6)
                assert one.batch.instance == ("tiny", "cpu")
                assert one.batch.size >= 1
                assert one.seconds.forward > 0
                assert one.seconds.queue >= 0


async def test_an_answer_stays_valid_when_another_image_uses_its_slot(
    tiny: ModelSpec, clock_png: bytes, clock_jpeg: bytes
) -> None:
    async with _started(tiny, workers=1, queue_capacity=64) as service:
        first = await _predict(service.workers[0], clock_png)
        before = _contents(first)
        for _ in range(200):
            await _predict(service.workers[0], clock_jpeg)

        assert _contents(first) == before
        assert _contents(await _predict(service.workers[0], clock_png)) == before


async def test_a_bad_image_fails_alone(tiny: ModelSpec, clock_png: bytes) -> None:
    async with _started(tiny) as service:
        good, bad = (await _predict(service.workers[0], clock_png, clock_png[:200])).results

    assert isinstance(good, Prediction)
    assert isinstance(bad, ImageError)
    assert isinstance(bad, UndecodableImageError)
    assert service.counts[0].outcomes == {"ok": 1, "bad_image": 1}


async def test_images_of_all_workers_share_a_batch(
    gated: ModelSpec, gate: threading.Event, entered: threading.Event, clock_png: bytes
) -> None:
    async with _started(gated) as service:
        gate.clear()
        entered.clear()
        first = asyncio.create_task(_predict(service.workers[0], clock_png))
        await asyncio.to_thread(entered.wait, _TIMEOUT_S)
        others = [asyncio.create_task(_predict(worker, clock_png)) for worker in service.workers]
        await _until(lambda: service.engine.runtime.instances()["tiny", "cpu"].depth == 2)
        gate.set()
        await first
        sizes = [result.batch.size for answer in await asyncio.gather(*others) for result in answer.results]  # type: ignore[union-attr]

    assert sizes == [2, 2]


async def test_each_request_of_a_worker_has_a_fairness_key_of_its_own(
    tiny: ModelSpec, clock_png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[object] = []
    submit = Batcher.submit

    def recorded(batcher: Batcher[Any, Any], item: BatchItem, **others: Any) -> Any:
        keys.append(item.request.fairness_key)
        return submit(batcher, item, **others)

    monkeypatch.setattr(Batcher, "submit", recorded)
    async with _started(tiny, workers=1) as service:
        for _ in range(20):
            await _predict(service.workers[0], clock_png, clock_png)
    # The two images of a request share it.
    assert keys[::2] == keys[1::2]
    assert len(set(keys)) == 20


async def test_a_load_that_ends_after_its_timeout_keeps_no_slots(tiny: ModelSpec) -> None:
    builds, hold = [0], threading.Event()

    def build() -> Classifier:
        builds[0] += 1
        if builds[0] > 1:
            assert hold.wait(_TIMEOUT_S)
        return tiny.build()

    async with _started(replace(tiny, build=build), workers=1, load_timeout_s=0.1) as service:
        with pytest.raises(LoadTimeoutError):
            await service.workers[0].load("tiny", None)
        [loader] = [thread for thread in threading.enumerate() if thread.name == "loader-tiny"]
        hold.set()
        await asyncio.to_thread(loader.join, _TIMEOUT_S)
        await _until(lambda: len(service.engine._images.versions) == 1)  # noqa: SLF001
        assert service.engine.runtime.cards["tiny"].version == 1


async def test_cancelled_images_take_no_capacity_from_others(
    gated: ModelSpec, gate: threading.Event, entered: threading.Event, clock_png: bytes
) -> None:
    async with _started(gated, workers=1, queue_capacity=4) as service:
        [worker] = service.workers
        instances = service.engine.runtime.instances
        gate.clear()
        entered.clear()
        first = asyncio.create_task(_predict(worker, clock_png))
        await asyncio.to_thread(entered.wait, _TIMEOUT_S)
        cancelled = asyncio.create_task(_predict(worker, clock_png, clock_png, clock_png))
        await _until(lambda: instances()["tiny", "cpu"].depth == 3)
        cancelled.cancel()
        with suppress(asyncio.CancelledError):
            await cancelled
        staying = asyncio.create_task(_predict(worker, clock_png, clock_png, clock_png))
        # Cancelled images stay in the queue until a batch forms.
        await _until(lambda: staying.done() or instances()["tiny", "cpu"].depth == 6)
        gate.set()
        assert len((await staying).results) == 3
        await first


async def test_workers_share_the_capacity_of_a_model(gated: ModelSpec, gate: threading.Event, clock_png: bytes) -> None:
    async with _started(gated, queue_capacity=3) as service:
        one, other = service.workers
        gate.clear()
        inside = asyncio.create_task(_predict(one, clock_png, clock_png))
        await _until(lambda: service.engine.runtime.admissions()["tiny"].in_flight == 2)
        with pytest.raises(OverloadedError) as refused:
            await _predict(other, clock_png, clock_png)
        last = asyncio.create_task(_predict(other, clock_png))
        await _until(lambda: other.refusal("tiny", "classify") is not None)
        assert one.half_full
        assert refused.value.capacity == 3
        assert one.refusal("tiny", "classify") is not None
        gate.set()
        await asyncio.gather(inside, last)
        assert service.engine.runtime.admissions()["tiny"].in_flight == 0
        assert not one.half_full


async def test_no_forward_runs_for_a_request_that_was_cancelled_in_the_queue(
    gated: ModelSpec, gate: threading.Event, entered: threading.Event, handed_over: HandedOver, clock_png: bytes
) -> None:
    async with _started(gated, workers=1) as service:
        [worker] = service.workers
        gate.clear()
        entered.clear()
        first = asyncio.create_task(_predict(worker, clock_png))
        await asyncio.to_thread(entered.wait, _TIMEOUT_S)
        second = asyncio.create_task(_predict(worker, clock_png))
        await handed_over(2)
        await _until(lambda: service.engine.runtime.instances()["tiny", "cpu"].depth == 1)
        for request in (first, second):
            request.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        gate.set()
        third = await _predict(worker, clock_png)

        # The forward of the first had started; the second was dropped before its forward.
        assert service.counts[0].cancelled == ["forward", "queue"]
        assert isinstance(third.results[0], Prediction)
        await _until(lambda: service.engine_counts.batches == [1, 1])
        # All slots are free again.
        answers = [await _predict(worker, *[clock_png] * 64) for _ in range(10)]
        assert len(answers) == 10


async def test_all_workers_serve_a_model_when_the_load_of_one_returns(tiny: ModelSpec, clock_png: bytes) -> None:
    async with _started(tiny) as service:
        one, other = service.workers
        loaded = await one.load("null", "null")
        assert not loaded.replaced
        for worker in service.workers:
            assert list(worker.cards) == ["tiny", "null"]
            assert (await worker.predict("null", InferenceRequest("classify", [clock_png], top_k=1))).model == "null"
        assert (await other.load("null")).card.version == 2
        assert one.cards["null"].version == 2
        await other.unload("null")
        for worker, counts in zip(service.workers, service.counts, strict=True):
            assert list(worker.cards) == ["tiny"]
            assert counts.devices == {"tiny": ["cpu"]}
            with pytest.raises(UnknownModelError):
                await worker.predict("null", InferenceRequest("classify", [clock_png], top_k=1))
        with pytest.raises(ModelNotLoadedError):
            await one.load("other", "no/such/folder")


async def test_a_worker_knows_every_device_of_a_model(tiny: ModelSpec, clock_png: bytes) -> None:
    async with _started(tiny, workers=1, device="cpu:0,cpu") as service:
        answer = await _predict(service.workers[0], clock_png)

    assert isinstance(answer.results[0], Prediction)
    assert service.counts[0].devices == {"tiny": ["cpu:0", "cpu"]}


async def test_no_request_fails_while_a_model_is_replaced(tiny: ModelSpec, clock_png: bytes) -> None:
    async with _started(tiny) as service:
        await service.workers[0].load("null", "null")
        over = asyncio.Event()

        async def keep_sending(worker: WorkerRuntime) -> int:
            sent = 0
            while not over.is_set():
                answer = await worker.predict("null", InferenceRequest("classify", [clock_png], top_k=1))
                assert isinstance(answer.results[0], Prediction)
                sent += 1
            return sent

        requests = [asyncio.create_task(keep_sending(worker)) for worker in service.workers for _ in range(4)]
        for _ in range(4):
            await service.workers[1].load("null")
        over.set()
        assert min(await asyncio.gather(*requests)) > 0
        assert service.workers[0].cards["null"].version == 5


async def test_the_memory_of_a_version_is_freed_with_it(tiny: ModelSpec, clock_png: bytes) -> None:
    def mapped() -> set[str]:
        """The inodes of the slots that this process has mapped."""
        lines = Path("/proc/self/maps").read_text().splitlines()
        return {line.split()[4] for line in lines if "gradless-slots" in line}

    async with _started(tiny) as service:
        before = mapped()
        for _ in range(2):
            await service.workers[0].load("null", "null")
            await asyncio.gather(
                *(worker.predict("null", InferenceRequest("features", [clock_png])) for worker in service.workers)
            )
        await service.workers[0].unload("null")
        await _until(lambda: mapped() <= before)


async def test_any_worker_runs_the_lens_and_receives_its_progress(tiny: ModelSpec, clock_png: bytes) -> None:
    options = ComparisonOptions(arms=("grad", "inference_mode"), batch_size=2, iterations=1)
    received: list[Progress] = []
    async with _started(tiny) as service:
        report = await service.workers[1].compare(None, options, clock_png, received.append)
        with pytest.raises(UndecodableImageError):
            await service.workers[1].compare(None, options, clock_png[:200])

    assert [arm.arm for arm in report.arms] == ["grad", "inference_mode"]
    assert received[0].done == 0
    assert len(received) > 1


async def test_a_comparison_ends_when_its_request_is_cancelled(
    gated: ModelSpec, gate: threading.Event, entered: threading.Event
) -> None:
    async with _started(gated) as service:
        gate.clear()
        entered.clear()
        comparing = asyncio.create_task(service.workers[0].compare(None, ComparisonOptions(iterations=1000)))
        await asyncio.to_thread(entered.wait, _TIMEOUT_S)
        comparing.cancel()
        await asyncio.gather(comparing, return_exceptions=True)
        gate.set()
        # Another can start, so the first has ended.
        options = ComparisonOptions(arms=("grad",), batch_size=1, iterations=1)
        async with asyncio.timeout(_TIMEOUT_S):
            while True:
                with suppress(ComparisonRunningError):
                    await service.workers[1].compare(None, options)
                    break


async def test_scrapes_of_several_workers_share_one_exposition(tiny: ModelSpec) -> None:
    async with _started(tiny) as service:
        for worker in service.workers:
            assert await asyncio.to_thread(worker.exposition, "text", 60, _TIMEOUT_S) == "engine text"

    assert service.scraped == ["text"]


async def test_when_a_worker_dies_only_its_own_requests_are_lost(
    gated: ModelSpec, gate: threading.Event, entered: threading.Event, clock_png: bytes
) -> None:
    async with _started(gated, queue_capacity=4) as service:
        dying, living = service.workers
        gate.clear()
        entered.clear()
        requests = [asyncio.create_task(_predict(dying, clock_png))]
        await asyncio.to_thread(entered.wait, _TIMEOUT_S)
        requests += [asyncio.create_task(_predict(dying, clock_png)) for _ in range(2)]
        await _until(lambda: service.engine.runtime.instances()["tiny", "cpu"].depth == 2)
        # The kernel closes the socket of a killed process.
        service.sockets[0].shutdown(socket.SHUT_RDWR)
        await _until(lambda: service.lost == [0])
        assert service.engine.runtime.admissions()["tiny"].in_flight == 0
        # Its slots are in use until the forward ends; until then no other worker gets them.
        assert service.engine.free_number() == 2
        gate.set()
        answers = await asyncio.gather(*(_predict(living, clock_png) for _ in range(4)))
        assert all(isinstance(answer.results[0], Prediction) for answer in answers)
        assert await asyncio.gather(*requests, return_exceptions=True)
        await _until(lambda: service.engine.free_number() == 0)
        service.reasons.clear()


async def test_a_lost_worker_keeps_its_number_while_its_process_runs(tiny: ModelSpec) -> None:
    async with _started(tiny) as service:
        service.sockets[0].shutdown(socket.SHUT_RDWR)
        await _until(lambda: service.lost == [0])
        await _until(lambda: service.engine.free_number() == 0)
        assert service.engine.free_number(alive={0, 1}) == 2
        service.reasons.clear()


async def test_images_that_a_lost_worker_still_counts_are_forgotten_when_its_process_has_ended(tiny: ModelSpec) -> None:
    async with _started(tiny) as service:
        service.sockets[0].shutdown(socket.SHUT_RDWR)
        await _until(lambda: service.lost == [0])
        await _until(lambda: service.engine.free_number() == 0)
        # A killed worker does not set its count back.
        service.engine._images.versions[0].slots.set_in_flight(0, 3)  # noqa: SLF001
        assert service.engine.runtime.admissions()["tiny"].in_flight == 3
        service.engine.process_ended(0)

        assert service.engine.runtime.admissions()["tiny"].in_flight == 0
        service.reasons.clear()


async def test_a_worker_whose_message_cannot_be_processed_is_dropped_alone(
    tiny: ModelSpec, clock_png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _started(tiny) as service:
        faulty, other = service.workers
        monkeypatch.setattr("models.workers.engine_server.RpcServer.on_call", lambda *_: 1 / 0)
        with pytest.raises(DrainingError):
            await faulty.load("null", "null")
        await _until(lambda: service.lost == [0])

        assert isinstance((await _predict(other, clock_png)).results[0], Prediction)
        assert service.reasons == ["the engine process has ended, or has dropped this HTTP worker"]


async def test_a_worker_fails_all_requests_when_the_engine_process_has_ended(
    gated: ModelSpec, gate: threading.Event, entered: threading.Event, clock_png: bytes
) -> None:
    async with _started(gated, workers=1) as service:
        [worker] = service.workers
        gate.clear()
        entered.clear()
        request = asyncio.create_task(_predict(worker, clock_png))
        await asyncio.to_thread(entered.wait, _TIMEOUT_S)
        service.sockets[0].shutdown(socket.SHUT_RDWR)
        with pytest.raises(ModelDownError):
            await request
        with pytest.raises(ModelDownError):
            await _predict(worker, clock_png)
        assert not worker.ready
        assert service.reasons == ["the engine process has ended, or has dropped this HTTP worker"]
        gate.set()


async def test_a_model_that_stops_working_is_down_for_all_workers_until_it_is_replaced(
    gated: ModelSpec, gate: threading.Event, clock_png: bytes
) -> None:
    async with _started(gated, forward_timeout_s=0.8) as service:
        gate.clear()
        request = asyncio.create_task(_predict(service.workers[0], clock_png))
        with pytest.raises(ModelDownError):
            await request
        await _until(lambda: not any(worker.ready for worker in service.workers))
        gate.set()
        await _until(lambda: all(worker.ready and worker.cards["tiny"].version == 2 for worker in service.workers))
        for worker in service.workers:
            assert isinstance((await _predict(worker, clock_png)).results[0], Prediction)


async def test_all_workers_drain_when_the_engine_process_does(tiny: ModelSpec) -> None:
    async with _started(tiny) as service:
        service.engine.runtime.drain()
        await _until(lambda: all(worker.draining and not worker.ready for worker in service.workers))


async def test_many_errors_at_once_reach_a_worker_that_reads_them(
    gated: ModelSpec, gate: threading.Event, clock_png: bytes
) -> None:
    async with _started(gated, workers=1, forward_timeout_s=0.8) as service:
        # The smallest buffer that the kernel gives a socket.
        for worker in service.engine._workers.values():  # noqa: SLF001
            worker.channel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # noqa: SLF001
        gate.clear()
        requests = [asyncio.create_task(_predict(service.workers[0], clock_png)) for _ in range(200)]
        errors = await asyncio.gather(*requests, return_exceptions=True)
        gate.set()

        assert {type(error) for error in errors} == {ModelDownError}
        await _until(lambda: service.workers[0].ready)
        assert isinstance((await _predict(service.workers[0], clock_png)).results[0], Prediction)
        assert service.lost == []
