"""Two concurrent batches of one model have their own results, and the lens gets exclusive access between them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from models import backends
from models.backends import BackendOptions
from models.hardware import cores
from models.inference.engine import Engine
from models.inference.image_job import BatchItem
from models.interface.request import CancelToken, InferenceRequest
from models.loading.load import load
from models.networks.network import FeaturesAndLogits
from models.networks.specs import ModelSpec

_PATIENCE_S = 30
_ROUNDS = 30


def _items(seed: int) -> list[BatchItem]:
    generator = torch.Generator().manual_seed(seed)
    # One more than the cores have equal shares of: OpenVINO runs that one in another way.
    count = 4 * cores.available_cores() + 1
    return [
        BatchItem(image, InferenceRequest("classify", top_k=10))
        for image in torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    ]


@pytest.fixture(params=["openvino", "eager"])
def engine(request: pytest.FixtureRequest, tiny: ModelSpec, tmp_path: Path) -> Iterator[Engine]:
    """The tiny model, warmed up for each of two threads."""
    backend: str = request.param
    model = load(tiny, backends.place("cpu", "fp32", backend))
    made = Engine(model, backends.make(model, BackendOptions(max_batch_size=len(_items(0)), cache_folder=tmp_path)))
    yield made
    made.close()


@pytest.fixture
def threads(engine: Engine) -> Iterator[ThreadPoolExecutor]:
    """The two threads that run its batches."""
    with ThreadPoolExecutor(2, initializer=engine.prepare_thread) as threads:
        yield threads


@pytest.mark.skipif(cores.available_cores() == 1, reason="on one core there is one batch thread")
def test_a_backend_that_splits_batches_over_cores_runs_two_and_allows_overlap_from_one_image_per_core(
    engine: Engine,
) -> None:
    assert engine.hints.max_concurrent_batches == 2
    # `eager` runs a single image on one core, `openvino` on all of them.
    expected = {"eager": 1, "openvino": cores.available_cores()}
    assert engine.hints.overlap_min_size == expected[engine.model.placement.backend]


def test_two_concurrent_batches_each_have_their_own_results(engine: Engine, threads: ThreadPoolExecutor) -> None:
    batches = [_items(seed) for seed in range(2)]
    alone = [engine.run(batch) for batch in batches]
    together = threading.Barrier(2)

    def run_many_times(number: int) -> None:
        for _ in range(_ROUNDS):
            together.wait(_PATIENCE_S)
            for found, expected in zip(engine.run(batches[number]), alone[number], strict=True):
                np.testing.assert_allclose(found.features, expected.features, rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-4)

    list(threads.map(run_many_times, range(2)))


def test_the_lens_gets_exclusive_access_while_both_batch_threads_are_busy(
    engine: Engine, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: set[int] = set()
    ran = [threading.Event(), threading.Event()]
    enough = threading.Event()
    forward = engine.forward

    def noted(pixels: torch.Tensor, cancel_token: CancelToken) -> FeaturesAndLogits:
        inside.add(threading.get_ident())
        try:
            return forward(pixels, cancel_token)
        finally:
            inside.discard(threading.get_ident())

    def keep_busy(number: int) -> None:
        batch = _items(number)
        while not enough.is_set():
            engine.run(batch)
            ran[number].set()

    monkeypatch.setattr(engine, "forward", noted)
    busy = [threads.submit(keep_busy, number) for number in range(2)]
    try:
        pixels = torch.stack([item.image for item in _items(2)]).contiguous(memory_format=torch.channels_last)
        for _ in range(_ROUNDS):
            assert all(event.wait(_PATIENCE_S) for event in ran)
            with engine.lock:
                assert not inside
                forward(pixels)
                assert not inside
                for event in ran:
                    event.clear()
    finally:
        enough.set()
    for thread in busy:
        thread.result(_PATIENCE_S)


@pytest.mark.skipif(sys.platform != "linux", reason="a priority is a thread's own on Linux alone")
@pytest.mark.skipif(cores.available_cores() == 1, reason="on one core there are no streams")
def test_forward_threads_have_a_lower_priority_than_the_others(tiny: ModelSpec, tmp_path: Path) -> None:
    def priorities() -> dict[str, int]:
        found = {}
        for thread in tasks.iterdir():
            # Threads of earlier tests may end meanwhile.
            with suppress(ProcessLookupError):
                found[thread.name] = os.getpriority(os.PRIO_PROCESS, int(thread.name))
        return found

    tasks = Path("/proc/self/task")
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    before = priorities()
    model = load(tiny, backends.place("cpu", "fp32", "openvino"))
    engine = Engine(model, backends.make(model, BackendOptions(max_batch_size=len(_items(0)), cache_folder=tmp_path)))
    engine.run(_items(0))
    after = priorities()
    engine.close()

    # OpenVINO may take threads of streams that are no more.
    giving_way = [thread for thread, nice in after.items() if nice == own + cores.NICE_STEPS]
    assert len(giving_way) >= cores.available_cores()
    assert {thread: after[thread] for thread in before if thread in after} == {
        thread: nice for thread, nice in before.items() if thread in after
    }
