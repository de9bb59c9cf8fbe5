"""A forward stops between two of its pieces once all its requests are cancelled, and leaves no state behind."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import backends
from models.backends import BackendOptions
from models.hardware import cores
from models.inference.engine import Engine
from models.inference.image_job import BatchItem
from models.interface.request import NEVER_CANCELLED, AllCancelledError, CancelToken, InferenceRequest
from models.interface.telemetry import BatchReport, Stage, Telemetry
from models.loading.load import load
from models.networks.specs import Classifier, ModelSpec
from models.serving.runtime import LocalRuntime, ServingOptions

pytestmark = pytest.mark.anyio

_PATIENCE_S = 30
_CORES = cores.available_cores()
# Pieces of four, two for each core: half of them wait while the others run.
_IMAGES = 8 * _CORES


def _items(token: CancelToken) -> list[BatchItem]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_IMAGES + 1, 3, 32, 32), dtype=torch.uint8, generator=generator)
    request = InferenceRequest("classify", top_k=10, cancel_token=token)
    return [BatchItem(image, request) for image in images]


class _CancelledAfter(CancelToken):
    """A token that is cancelled after a number of polls."""

    def __init__(self, polls: int) -> None:
        super().__init__()
        self._left = polls

    @property
    def cancelled(self) -> bool:
        self._left -= 1
        return self._left < 0


def _cancelled() -> CancelToken:
    token = CancelToken()
    token.cancel()
    return token


@pytest.fixture(params=["openvino", "eager"])
def engine(request: pytest.FixtureRequest, tiny: ModelSpec, tmp_path: Path) -> Iterator[Engine]:
    backend: str = request.param
    model = load(tiny, backends.place("cpu", "fp32", backend))
    made = Engine(model, backends.make(model, BackendOptions(max_batch_size=_IMAGES + 1, cache_folder=tmp_path)))
    made.prepare_thread()
    yield made
    made.close()


def _with_token(item: BatchItem, token: CancelToken) -> BatchItem:
    return item._replace(request=replace(item.request, cancel_token=token))


@pytest.mark.parametrize("polls", [0, 1], ids=["at its beginning", "in its middle"])
def test_a_forward_stops_once_all_its_requests_are_cancelled_and_the_next_forward_is_complete(
    engine: Engine, polls: int
) -> None:
    expected = engine.run(_items(NEVER_CANCELLED))
    # A second stopped forward finds no state of the first.
    for _ in range(2):
        items = _items(_cancelled())
        with pytest.raises(AllCancelledError):
            engine.run([_with_token(items[0], _CancelledAfter(polls)), *items[1:]])
        found = engine.run(_items(NEVER_CANCELLED))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.features, other.features)


def test_a_forward_is_complete_if_one_of_its_requests_is_not_cancelled(engine: Engine) -> None:
    items = _items(_cancelled())
    outputs = engine.run([*items[:-1], _with_token(items[-1], NEVER_CANCELLED)])

    assert len(outputs) == len(items)


class _Pieces(Telemetry):
    """Records the sizes of the pieces that began, the batches that ended, and the stages of cancelled images."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget earlier batches, such as those of the warm-up."""
        self.sizes: list[int] = []
        self.batches: list[int] = []
        self.cancelled: list[str] = []
        self._begun = threading.Semaphore(0)

    def begin(self, size: int) -> None:
        self.sizes.append(size)
        self._begun.release()

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self._begun.acquire(timeout=_PATIENCE_S)

    def image_cancelled(self, model: str, stage: Stage, saved_seconds: float) -> None:  # noqa: ARG002
        self.cancelled.append(stage)

    def batch_ran(self, report: BatchReport) -> None:
        self.batches.append(report.size)


@pytest.fixture
def pieces() -> _Pieces:
    return _Pieces()


@pytest.fixture
def serving(tiny: ModelSpec, gate: threading.Event, pieces: _Pieces) -> Iterator[LocalRuntime]:
    """Runs full batches only, and blocks each piece until the gate opens."""

    class Noted(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pieces.begin(len(images))
            assert gate.wait(_PATIENCE_S)
            return images

    def build() -> Classifier:
        classifier = tiny.build()
        return Classifier(nn.Sequential(Noted(), classifier.module), classifier.transform, classifier.labels)

    spec = ModelSpec("tiny", "tiny-convnet", build)
    options = ServingOptions(models=[spec], backend="eager", max_batch_size=_IMAGES, max_batch_delay_s=1000.0)
    made = LocalRuntime(options, pieces)
    yield made
    gate.set()
    assert made.close(_PATIENCE_S)


@pytest.mark.parametrize("staying", [0, 1])
async def test_remaining_pieces_do_not_run_once_all_clients_have_disconnected(
    serving: LocalRuntime,
    pieces: _Pieces,
    gate: threading.Event,
    clock_png: bytes,
    caplog: pytest.LogCaptureFixture,
    staying: int,
) -> None:
    gate.clear()
    pieces.forget()
    requests = [
        asyncio.create_task(serving.predict("tiny", InferenceRequest("classify", [clock_png], top_k=1)))
        for _ in range(_IMAGES)
    ]
    await asyncio.to_thread(pieces.wait_for, _CORES)
    cancelled = requests[staying:]
    for request in cancelled:
        request.cancel()
    await asyncio.wait(cancelled)
    gate.set()
    answers = await asyncio.gather(*requests[:staying])
    await asyncio.to_thread(serving.close, _PATIENCE_S)

    assert pieces.sizes == [4] * (2 * _CORES if staying else _CORES)
    assert all(len(answer.results) == 1 for answer in answers)
    assert pieces.batches == [_IMAGES]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("polls", [0, 1], ids=["before it is submitted", "in the pool's queue"])
async def test_a_cancelled_image_is_not_decoded(tiny: ModelSpec, pieces: _Pieces, clock_png: bytes, polls: int) -> None:
    # One thread decodes one image after another.
    serving = LocalRuntime(ServingOptions(models=[tiny], backend="eager", decode_threads=1), pieces)
    left = asyncio.create_task(
        serving.predict(
            "tiny", InferenceRequest("classify", [b"not an image"] * 3, top_k=1, cancel_token=_CancelledAfter(polls))
        )
    )
    await asyncio.sleep(0)
    answer = await serving.predict("tiny", InferenceRequest("classify", [clock_png], top_k=1))

    assert len(answer.results) == 1
    assert not left.done()
    left.cancel()
    await asyncio.wait([left])
    assert left.cancelled()
    assert pieces.cancelled == ["decode"] * 3
    assert serving.close(_PATIENCE_S)


async def test_a_forward_may_stop_before_the_event_loop_knows_of_the_disconnect(
    serving: LocalRuntime, pieces: _Pieces, gate: threading.Event, clock_png: bytes
) -> None:
    gate.clear()
    pieces.forget()
    token = CancelToken()
    images = [clock_png] * _IMAGES
    left = asyncio.create_task(
        serving.predict("tiny", InferenceRequest("classify", images, top_k=1, cancel_token=token))
    )
    await asyncio.to_thread(pieces.wait_for, _CORES)
    token.cancel()
    gate.set()
    # The batch thread reports the batch last, so by then it has reported each image.
    await asyncio.to_thread(serving.close, _PATIENCE_S)
    await asyncio.sleep(0)

    assert pieces.batches == [_IMAGES]
    assert not left.done()
    left.cancel()
    await asyncio.wait([left])
    assert left.cancelled()
    assert pieces.cancelled == ["forward"] * _IMAGES
