"""A forward whose callers have all left is stopped where its batch runs in pieces, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import backends
from models.backends import BackendOptions
from models.hardware import cores
from models.inference.batch_item import BatchItem
from models.inference.engine import Engine
from models.interface.cancellation import AllCancelledError
from models.interface.telemetry import BatchReport, Stage, Unheard
from models.loading.load import load
from models.networks.specs import Classifier, ModelSpec
from models.serving.runtime import LocalRuntime, ServingOptions

pytestmark = pytest.mark.anyio

_PATIENCE_S = 30
_CORES = cores.available_cores()
# Pieces of four, two for each core: half of them wait while the others run.
_IMAGES = 8 * _CORES


def _items(wanted: Callable[[], bool]) -> list[BatchItem]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_IMAGES + 1, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return [BatchItem(image, 10, wanted) for image in images]


class _WantedFor:
    """Wanted so many times, however often it is asked."""

    def __init__(self, times: int) -> None:
        self._left = times

    def __call__(self) -> bool:
        self._left -= 1
        return self._left >= 0


@pytest.fixture(params=["openvino", "eager"])
def engine(request: pytest.FixtureRequest, tiny: ModelSpec, tmp_path: Path) -> Iterator[Engine]:
    backend: str = request.param
    model = load(tiny, backends.place("cpu", "fp32", backend))
    made = Engine(model, backends.make(model, BackendOptions(max_batch_size=_IMAGES + 1, cache_folder=tmp_path)))
    made.prepare_thread()
    yield made
    made.close()


@pytest.mark.parametrize("times", [0, 1], ids=["at its beginning", "in its middle"])
def test_a_forward_that_is_not_wanted_any_more_is_given_up_and_the_next_one_is_whole(
    engine: Engine, times: int
) -> None:
    expected = engine.run(_items(lambda: True))
    # A second one finds nothing of the first.
    for _ in range(2):
        wanted = _WantedFor(times)
        items = [BatchItem(item.image, item.top_k, lambda: False) for item in _items(wanted)]
        with pytest.raises(AllCancelledError):
            engine.run([items[0]._replace(wanted=wanted), *items[1:]])
        found = engine.run(_items(lambda: True))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.features, other.features)


def test_a_forward_that_one_of_its_callers_waits_for_is_run_to_its_end(engine: Engine) -> None:
    items = _items(lambda: False)
    outputs = engine.run([*items[:-1], items[-1]._replace(wanted=lambda: True)])

    assert len(outputs) == len(items)


class _Pieces(Unheard):
    """The pieces of forwards that have begun, and how many it takes; the batches that are over."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """What was, the warm-up for one."""
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
    """Waits for a full batch, and holds its pieces at the gate."""

    class Noted(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pieces.begin(len(images))
            assert gate.wait(_PATIENCE_S)
            return images

    def build() -> Classifier:
        classifier = tiny.build()
        return Classifier(nn.Sequential(Noted(), classifier.module), classifier.transform, classifier.labels)

    spec = ModelSpec("tiny", "tiny-convnet", build)
    options = ServingOptions(models=[spec], backend="eager", max_batch_size=_IMAGES, max_wait_s=1000.0)
    made = LocalRuntime(options, pieces)
    yield made
    gate.set()
    assert made.close(_PATIENCE_S)


@pytest.mark.parametrize("staying", [0, 1])
async def test_what_has_not_begun_of_a_forward_is_not_run_once_all_its_callers_have_left(
    serving: LocalRuntime,
    pieces: _Pieces,
    gate: threading.Event,
    clock_png: bytes,
    caplog: pytest.LogCaptureFixture,
    staying: int,
) -> None:
    gate.clear()
    pieces.forget()
    callers = [
        asyncio.create_task(serving.predict("tiny", [clock_png], task="classify", top_k=1)) for _ in range(_IMAGES)
    ]
    await asyncio.to_thread(pieces.wait_for, _CORES)
    leaving = callers[staying:]
    for caller in leaving:
        caller.cancel()
    await asyncio.wait(leaving)
    gate.set()
    answers = await asyncio.gather(*callers[:staying])
    await asyncio.to_thread(serving.close, _PATIENCE_S)

    assert pieces.sizes == [4] * (2 * _CORES if staying else _CORES)
    assert all(len(answer.results) == 1 for answer in answers)
    assert pieces.batches == [_IMAGES]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("asked", [0, 1], ids=["before it is handed on", "when its turn has come"])
async def test_what_nobody_waits_for_any_more_is_not_decoded(
    tiny: ModelSpec, pieces: _Pieces, clock_png: bytes, asked: int
) -> None:
    # In one thread each comes after the other.
    serving = LocalRuntime(ServingOptions(models=[tiny], backend="eager", decode_threads=1), pieces)
    left = asyncio.create_task(
        serving.predict("tiny", [b"not an image"] * 3, task="classify", top_k=1, wanted=_WantedFor(asked))
    )
    await asyncio.sleep(0)
    answer = await serving.predict("tiny", [clock_png], task="classify", top_k=1)

    assert len(answer.results) == 1
    assert not left.done()
    left.cancel()
    await asyncio.wait([left])
    assert left.cancelled()
    assert pieces.cancelled == ["decode"] * 3
    assert serving.close(_PATIENCE_S)


async def test_a_forward_may_be_given_up_before_it_is_known_here_that_its_caller_has_left(
    serving: LocalRuntime, pieces: _Pieces, gate: threading.Event, clock_png: bytes
) -> None:
    gate.clear()
    pieces.forget()
    there = threading.Event()
    there.set()
    images = [clock_png] * _IMAGES
    left = asyncio.create_task(serving.predict("tiny", images, task="classify", top_k=1, wanted=there.is_set))
    await asyncio.to_thread(pieces.wait_for, _CORES)
    there.clear()
    gate.set()
    # Its last act is to tell of the batch, so whatever came of the images has been said by then.
    await asyncio.to_thread(serving.close, _PATIENCE_S)
    await asyncio.sleep(0)

    assert pieces.batches == [_IMAGES]
    assert not left.done()
    left.cancel()
    await asyncio.wait([left])
    assert left.cancelled()
    assert pieces.cancelled == ["forward"] * _IMAGES
