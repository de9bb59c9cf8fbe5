"""Comparisons while serving: one at a time, cancellable, without effect on requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from gradless.records import ComparisonOptions, Progress
from models.interface.errors import ComparisonRunningError, DrainingError, UnknownModelError, UnsupportedFormatError
from models.interface.request import InferenceRequest
from models.interface.telemetry import Telemetry
from models.networks.specs import ModelSpec
from models.serving.runtime import LocalRuntime, ServingOptions

pytestmark = pytest.mark.anyio

PATIENCE_S = 30


@pytest.fixture
def held(gated: ModelSpec, gate: threading.Event, entered: threading.Event) -> Iterator[LocalRuntime]:
    """LocalRuntime whose forwards wait for the gate, which is closed."""
    runtime = LocalRuntime(ServingOptions(backend="eager", models=[gated]), Telemetry())
    gate.clear()
    entered.clear()
    yield runtime
    gate.set()
    runtime.close(timeout_s=PATIENCE_S)


async def arrival(entered: threading.Event) -> None:
    assert await asyncio.to_thread(entered.wait, PATIENCE_S)


async def test_a_second_comparison_is_refused_while_one_runs(
    held: LocalRuntime, gate: threading.Event, entered: threading.Event
) -> None:
    first = asyncio.create_task(held.compare(None, ComparisonOptions(batch_size=1, iterations=1)))
    await arrival(entered)
    with pytest.raises(ComparisonRunningError):
        await held.compare("tiny", ComparisonOptions(batch_size=1, iterations=1))
    gate.set()
    assert (await first).model == "tiny"
    assert (await held.compare(None, ComparisonOptions(batch_size=1, iterations=1))).model == "tiny"


async def test_after_a_failed_thread_start_another_comparison_can_run(
    serving: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith("lens"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="new thread"):
            await serving.compare(None, ComparisonOptions(batch_size=1, iterations=1))
    assert (await serving.compare(None, ComparisonOptions(batch_size=1, iterations=1))).model == "tiny"


async def test_another_comparison_can_run_once_a_cancelled_forward_has_ended(
    held: LocalRuntime, gate: threading.Event, entered: threading.Event
) -> None:
    first = asyncio.create_task(held.compare(None, ComparisonOptions(batch_size=1, iterations=50)))
    await arrival(entered)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    # Its thread is still in the forward.
    with pytest.raises(ComparisonRunningError):
        await held.compare(None, ComparisonOptions(batch_size=1, iterations=1))
    gate.set()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                comparison = await held.compare(None, ComparisonOptions(batch_size=1, iterations=1))
            except ComparisonRunningError:
                await asyncio.to_thread(lambda: None)
            else:
                break
    assert comparison.iterations == 1


async def test_serving_answers_while_a_comparison_runs(serving: LocalRuntime, clock_png: bytes) -> None:
    comparison = asyncio.create_task(serving.compare(None, ComparisonOptions(batch_size=8, iterations=50)))
    answered = 0
    while not comparison.done():
        answer = await serving.predict(None, InferenceRequest("classify", [clock_png], top_k=1))
        answered += len(answer.results)
    assert answered > 0
    assert (await comparison).iterations == 50


async def test_after_an_unknown_model_another_comparison_can_run(serving: LocalRuntime) -> None:
    with pytest.raises(UnknownModelError):
        await serving.compare("unknown", ComparisonOptions(batch_size=1, iterations=1))
    await serving.compare(None, ComparisonOptions(batch_size=1, iterations=1))


async def test_closing_ends_a_running_comparison(
    held: LocalRuntime, gate: threading.Event, entered: threading.Event
) -> None:
    comparison = asyncio.create_task(held.compare(None, ComparisonOptions(batch_size=1, iterations=500)))
    await arrival(entered)
    closing = asyncio.create_task(asyncio.to_thread(held.close, PATIENCE_S))
    gate.set()
    assert await closing
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(DrainingError):
            await comparison


async def test_progress_is_reported_on_the_event_loop_before_the_result(serving: LocalRuntime) -> None:
    received: list[tuple[int, Progress]] = []

    def listen(progress: Progress) -> None:
        received.append((threading.get_ident(), progress))

    await serving.compare(None, ComparisonOptions(batch_size=1, iterations=1), None, listen)
    assert {thread for thread, _ in received} == {threading.get_ident()}
    assert [progress.done for _, progress in received] == list(range(len(received)))
    assert len(received) == received[-1][1].total


async def test_after_a_bad_image_another_comparison_can_run(serving: LocalRuntime) -> None:
    with pytest.raises(UnsupportedFormatError):
        await serving.compare(None, ComparisonOptions(batch_size=1, iterations=1), b"no image")
    await serving.compare(None, ComparisonOptions(batch_size=1, iterations=1))
