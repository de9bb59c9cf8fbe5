"""A model on several devices. Two names of the CPU stand for two devices."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from models.interface.errors import ModelDownError
from models.interface.request import InferenceRequest
from models.interface.results import Prediction
from models.interface.telemetry import BatchReport, Telemetry
from models.networks.specs import ModelSpec
from models.scheduling.batcher import Batcher
from models.serving.runtime import LocalRuntime, ServingOptions
from models.serving.served_model import _LeastLoaded

pytestmark = pytest.mark.anyio

_PATIENCE_S = 30


async def test_an_image_goes_to_the_device_that_has_the_fewest(
    gated: ModelSpec, gate: threading.Event, clock_png: bytes
) -> None:
    # One decode thread, so that images are queued one after another.
    options = ServingOptions(models=[gated], device="cpu:0,cpu", backend="eager", decode_threads=1)
    serving = LocalRuntime(options, Telemetry())
    gate.clear()
    try:
        requests = []
        # One in each forward, then one behind each.
        for depth in (0, 1):
            requests += [
                asyncio.create_task(serving.predict(None, InferenceRequest("classify", [clock_png], top_k=1)))
                for _ in range(2)
            ]
            async with asyncio.timeout(_PATIENCE_S):
                while not all(  # noqa: ASYNC110 - threads make it so
                    state.running_seconds and state.depth == depth for state in serving.instances().values()
                ):
                    await asyncio.sleep(0.001)
        gate.set()
        answers = await asyncio.gather(*requests)
    finally:
        gate.set()
        serving.close(timeout_s=_PATIENCE_S)

    results = [result for answer in answers for result in answer.results if isinstance(result, Prediction)]
    assert Counter(result.batch.instance.device for result in results) == {"cpu:0": 2, "cpu": 2}
    assert len({result.classes[0].index for result in results}) == 1
    assert serving.cards["tiny"].device == "cpu:0,cpu"
    assert list(serving.devices()) == ["cpu:0", "cpu"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_image_goes_to_no_device_whose_batcher_has_lost_a_thread() -> None:
    def end_the_thread(_: BatchReport) -> None:
        raise SystemExit

    def run(items: Sequence[Any]) -> Sequence[Any]:
        return items

    dead: Batcher[Any, Any] = Batcher(run, name="m", on_batch=end_the_thread)
    alive: Batcher[Any, Any] = Batcher(run, name="m")
    dead.submit("first").result(_PATIENCE_S)
    dead._threads[0].join(_PATIENCE_S)  # noqa: SLF001 - the batcher does not report its end
    queue = _LeastLoaded([dead, alive])

    assert queue.submit("second").result(_PATIENCE_S).result == "second"  # type: ignore[arg-type]
    for batcher in (dead, alive):
        batcher.abandon(lambda: ModelDownError("m"))
    with pytest.raises(ModelDownError):
        queue.submit("third")  # type: ignore[arg-type]
