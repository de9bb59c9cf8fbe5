"""The null model leaves out only the forward, so that it measures the server."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from models import backends
from models.backends import BackendOptions
from models.backends.pytorch import NullBackend
from models.inference.engine import Engine
from models.inference.image_job import BatchItem
from models.interface.errors import DrainingError
from models.interface.request import InferenceRequest
from models.interface.telemetry import Telemetry
from models.loading import catalog
from models.loading.load import LoadedModel, load
from models.serving.runtime import LocalRuntime, ServingOptions


def null_model(backend: str = "eager") -> LoadedModel:
    return load(catalog.find("null"), backends.place("cpu", "fp32", backend))


def test_the_null_model_always_uses_its_own_backend(tmp_path: Path) -> None:
    model = null_model("compiled")
    assert model.placement.backend == "null"
    assert isinstance(backends.make(model, BackendOptions(max_batch_size=4, cache_folder=tmp_path)), NullBackend)


def test_the_null_model_is_the_same_each_time() -> None:
    assert null_model().fingerprint == null_model().fingerprint


def test_the_null_answers_are_those_of_its_network_on_whole_images() -> None:
    model = null_model()
    pixels = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = NullBackend(model, BackendOptions()).run(pixels)
        expected = model.network(model.normalize(pixels))
    assert torch.equal(found.features, expected.features)
    torch.testing.assert_close(found.logits, expected.logits)


@pytest.mark.anyio
async def test_a_decode_pool_that_was_shut_down_refuses_new_images(clock_jpeg: bytes) -> None:
    serving = LocalRuntime(ServingOptions(models=["null"], backend="eager"), Telemetry())
    try:
        serving._decode_pool.close(timeout_s=10)  # noqa: SLF001 - as close() does, with a request still on its way
        with pytest.raises(DrainingError):
            await serving.predict(None, InferenceRequest("classify", [clock_jpeg, clock_jpeg, clock_jpeg], top_k=1))
    finally:
        serving.close(timeout_s=10)


def test_a_thread_that_hands_its_forward_to_others_uses_one_thread_of_pytorch() -> None:
    model = null_model()
    engine = Engine(model, NullBackend(model, BackendOptions()))
    seen: list[int] = []

    def work() -> None:
        engine.prepare_thread()
        seen.append(torch.get_num_threads())
        engine.run([BatchItem(torch.zeros(3, 224, 224, dtype=torch.uint8), InferenceRequest("classify", top_k=1))])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [1]
