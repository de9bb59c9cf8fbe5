"""Models on one device do not wait for each other's forwards."""

from __future__ import annotations

import asyncio
import threading

import pytest

from models.interface.request import InferenceRequest
from models.interface.telemetry import BatchReport, Telemetry
from models.networks.specs import ModelSpec
from models.serving.runtime import LocalRuntime, ServingOptions

pytestmark = pytest.mark.anyio

_PATIENCE_S = 30
_REQUESTS = 8


class _Forwards(Telemetry):
    """Records the models of the forwards, in order."""

    def __init__(self) -> None:
        self.forwards: list[str] = []

    def batch_ran(self, report: BatchReport) -> None:
        self.forwards.append(report.instance.model)


async def test_a_long_forward_of_one_model_does_not_delay_another_model(
    gated: ModelSpec, gate: threading.Event, entered: threading.Event, clock_png: bytes
) -> None:
    recorded = _Forwards()
    serving = LocalRuntime(ServingOptions(models=[gated, "null"], backend="eager"), recorded)
    gate.clear()
    entered.clear()
    try:
        heavy = [
            asyncio.create_task(serving.predict("tiny", InferenceRequest("classify", [clock_png], top_k=1)))
            for _ in range(_REQUESTS)
        ]
        assert await asyncio.to_thread(entered.wait, _PATIENCE_S)
        # One after another, each a forward of its own.
        for _ in range(_REQUESTS):
            await serving.predict("null", InferenceRequest("classify", [clock_png], top_k=1))
        assert not any(task.done() for task in heavy)
        gate.set()
        await asyncio.gather(*heavy)
    finally:
        gate.set()
        serving.close(timeout_s=_PATIENCE_S)

    # A forward is reported after its answers, so the last light one may be reported after the first heavy one.
    assert recorded.forwards.count("null") == _REQUESTS
    assert "tiny" not in recorded.forwards[: _REQUESTS - 1]
    assert set(recorded.forwards) == {"null", "tiny"}
