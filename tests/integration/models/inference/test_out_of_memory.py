"""A device that runs out of memory still answers every image that fits alone."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from models.hardware import memory
from models.networks.specs import Classifier, ModelSpec

if TYPE_CHECKING:
    from tests.integration.conftest import StartOverHttp

pytestmark = pytest.mark.anyio


class _Greedy(nn.Module):
    """A backend with memory for `room` images, which raises PyTorch's CUDA error beyond."""

    def __init__(self) -> None:
        super().__init__()
        self.room = 1000

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return images


@pytest.fixture
def greedy() -> _Greedy:
    return _Greedy()


@pytest.fixture
def limited(gated: ModelSpec, greedy: _Greedy) -> ModelSpec:
    """The gated tiny model behind a device with little memory."""

    def build() -> Classifier:
        classifier = gated.build()
        return Classifier(nn.Sequential(greedy, classifier.module), classifier.transform, classifier.labels)

    return ModelSpec("tiny", "tiny-convnet", build)


@pytest.fixture(autouse=True)
def _the_one_that_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    # The eager backend serves a folded copy; this one shares its appetite with the test.
    monkeypatch.setattr(_Greedy, "__deepcopy__", lambda self, _memo: self, raising=False)


def _counted(exposition: str, name: str) -> float:
    found = re.search(rf'^{name}\{{.*model="tiny"\}} (\S+)$', exposition, re.MULTILINE)
    assert found, name
    return float(found[1])


async def test_every_image_of_a_batch_that_does_not_fit_is_answered_and_the_size_is_remembered(
    over_http: StartOverHttp,
    limited: ModelSpec,
    greedy: _Greedy,
    gate: threading.Event,
    entered: threading.Event,
    clock_jpeg: bytes,
) -> None:
    # Larger than what will wait: a full batch would be begun at once.
    async with over_http(limited, max_batch_size=16) as client:
        alone = (await client.post("/v1/classify", content=clock_jpeg)).json()["results"]
        begun = (await client.get("/metrics")).text
        greedy.room = 1
        entered.clear()
        gate.clear()
        first = asyncio.create_task(client.post("/v1/classify", content=clock_jpeg))
        await asyncio.to_thread(entered.wait, 30)
        others = [asyncio.create_task(client.post("/v1/classify", content=clock_jpeg)) for _ in range(8)]
        queued = re.compile(r'^gradless_queue_depth\{device="cpu",model="tiny"\} 8\.0$', re.MULTILINE)
        while not queued.search((await client.get("/metrics")).text):
            pass
        gate.set()
        answers = await asyncio.gather(first, *others)
        exposition = (await client.get("/metrics")).text

    assert [answer.status_code for answer in answers] == [200] * 9
    for answer in answers:
        for found, expected in zip(answer.json()["results"][0]["predictions"], alone[0]["predictions"], strict=True):
            assert found["probability"] == pytest.approx(expected["probability"], abs=1e-5)
    # The eager backend cuts eight into two fours on two cores: neither 8 nor 4 nor 2 fit.
    assert _counted(exposition, "gradless_out_of_memory_total") >= 1
    assert _counted(exposition, "gradless_batch_splits_total") >= 1
    assert _counted(begun, "gradless_batch_size_limit") >= 8
    assert _counted(exposition, "gradless_batch_size_limit") <= 4


async def test_an_image_that_does_not_fit_alone_gets_503_with_the_reason(
    over_http: StartOverHttp, limited: ModelSpec, greedy: _Greedy, clock_jpeg: bytes
) -> None:
    async with over_http(limited) as client:
        greedy.room = 0
        refused = await client.post("/v1/classify", content=clock_jpeg)
        greedy.room = 1
        answered = await client.post("/v1/classify", content=clock_jpeg)

    assert refused.status_code == 503
    assert refused.json()["type"] == "urn:gradless:problem:out-of-memory"
    assert "too little memory for even one image" in refused.json()["detail"]
    assert answered.status_code == 200


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_every_kind_of_out_of_memory_error_is_recognised(error: Exception) -> None:
    assert memory.ran_out(error)


def test_an_allocation_that_really_fails_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert memory.ran_out(caught.value)


def test_other_errors_are_not_taken_for_out_of_memory() -> None:
    assert not memory.ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not memory.ran_out(ValueError("out of memory"))
