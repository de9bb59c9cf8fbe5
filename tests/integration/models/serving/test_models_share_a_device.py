"""Several models on one device: each has a turn of its own, so that none waits for another's forward."""

from __future__ import annotations

import asyncio
import threading

import pytest

from models.interface.request import InferenceRequest
from models.interface.telemetry import BatchReport, NoTelemetry
from models.networks.specs import ModelSpec
from models.serving.runtime import LocalRuntime, ServingOptions

pytestmark = pytest.mark.anyio

_PATIENCE_S = 30
_CALLERS = 8


class _Heard(NoTelemetry):
    """Notes whose forwards have run, in order."""

    def __init__(self) -> None:
        self.forwards: list[str] = []

    def batch_ran(self, report: BatchReport) -> None:
        self.forwards.append(report.model)


async def test_a_models_forwards_go_on_while_another_ones_forward_takes_long(
    gated: ModelSpec, gate: threading.Event, entered: threading.Event, clock_png: bytes
) -> None:
    heard = _Heard()
    serving = LocalRuntime(ServingOptions(models=[gated, "null"], backend="eager"), heard)
    gate.clear()
    entered.clear()
    try:
        heavy = [
            asyncio.create_task(serving.predict("tiny", InferenceRequest("classify", [clock_png], top_k=1)))
            for _ in range(_CALLERS)
        ]
        assert await asyncio.to_thread(entered.wait, _PATIENCE_S)
        # One after another, each a forward of its own.
        for _ in range(_CALLERS):
            await serving.predict("null", InferenceRequest("classify", [clock_png], top_k=1))
        assert not any(task.done() for task in heavy)
        gate.set()
        await asyncio.gather(*heavy)
    finally:
        gate.set()
        serving.close(timeout_s=_PATIENCE_S)

    # A forward is told of after its answers have been given: the last light one maybe after the first heavy one.
    assert heard.forwards.count("null") == _CALLERS
    assert "tiny" not in heard.forwards[: _CALLERS - 1]
    assert set(heard.forwards) == {"null", "tiny"}
