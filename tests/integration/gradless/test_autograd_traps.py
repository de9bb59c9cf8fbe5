"""Pitfalls of PyTorch's autograd modes: each test shows one, and that the server avoids it."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from gradless import retained_bytes
from gradless.records import ComparisonOptions
from models import backends
from models.inference.engine import Engine
from models.inference.image_job import BatchItem
from models.interface.errors import StartError
from models.interface.request import InferenceRequest
from models.interface.telemetry import Telemetry
from models.loading.load import load
from models.networks.specs import Classifier, ModelSpec
from models.serving.lens import compare_served
from models.serving.runtime import LocalRuntime, ServingOptions

pytestmark = pytest.mark.anyio

Seen = tuple[str, bool, bool]

SMALL = ComparisonOptions(batch_size=2, iterations=1)


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def state_hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def seen() -> list[Seen]:
    """Of each forward of `watched`: its thread, whether inference_mode was on, whether its output is an inference
    tensor."""
    return []


@pytest.fixture
def watched(tiny: ModelSpec, seen: list[Seen]) -> Iterator[LocalRuntime]:
    def build() -> Classifier:
        classifier = tiny.build()

        def note(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            seen.append((threading.current_thread().name, torch.is_inference_mode_enabled(), output.is_inference()))

        convolution = next(module for module in classifier.module.modules() if isinstance(module, nn.Conv2d))
        convolution.register_forward_hook(note)
        return Classifier(classifier.module, classifier.transform, classifier.labels)

    runtime = LocalRuntime(
        ServingOptions(backend="eager", models=[ModelSpec("tiny", "tiny-convnet", build)]), Telemetry()
    )
    seen.clear()
    yield runtime
    runtime.close(timeout_s=10)


async def test_1_the_mode_is_entered_in_the_thread_that_runs_the_forward(
    watched: LocalRuntime, seen: list[Seen], clock_png: bytes
) -> None:
    with ThreadPoolExecutor(1) as pool, torch.inference_mode():
        assert not pool.submit(torch.is_inference_mode_enabled).result(), "the mode is thread-local"
    await watched.predict(None, InferenceRequest("classify", [clock_png], top_k=1))
    # The eager backend runs a light network on the CPU in threads of its own.
    assert [(name.rstrip("_0123456789"), *modes) for name, *modes in seen] == [("forward", True, True)]
    assert not torch.is_inference_mode_enabled()


def test_1_set_grad_enabled_as_a_call_stays_in_its_thread_and_reaches_no_other() -> None:
    def call() -> bool:
        torch.set_grad_enabled(False)
        return torch.is_grad_enabled()

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        assert not one.submit(call).result()
        assert not one.submit(torch.is_grad_enabled).result(), "it persists in its thread"
        assert other.submit(torch.is_grad_enabled).result(), "it does not reach another thread"
        assert torch.is_grad_enabled()


def test_eval_alone_keeps_the_graph() -> None:
    network = two_layers().eval()
    assert retained_bytes(lambda: network(torch.rand(1, 4))) > 0


async def test_2_no_coroutine_holds_the_mode(
    gated: ModelSpec, gate: threading.Event, entered: threading.Event, clock_png: bytes
) -> None:
    async def enabled() -> bool:
        return torch.is_inference_mode_enabled()

    assert not await torch.inference_mode()(enabled)(), "the decorator does nothing for a coroutine"
    with torch.inference_mode():
        assert await asyncio.create_task(enabled()), "the context leaks into other tasks"

    for function in (Engine.run, Engine.warm_up, compare_served):
        assert not inspect.iscoroutinefunction(function)
    serving = LocalRuntime(ServingOptions(backend="eager", models=[gated]), Telemetry())
    gate.clear()
    entered.clear()
    answer = asyncio.create_task(serving.predict(None, InferenceRequest("features", [clock_png])))
    assert await asyncio.to_thread(entered.wait, 30)
    # A forward is under way in its mode, and no task here is.
    assert not await asyncio.create_task(enabled())
    gate.set()
    await answer
    serving.close(timeout_s=10)


async def test_3_a_served_network_can_still_run_a_forward_and_backward_with_gradients(
    tiny: ModelSpec, tiny_engine: Engine
) -> None:
    with torch.inference_mode():
        built_inside = two_layers()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        built_inside(torch.rand(1, 4))

    with torch.inference_mode(), pytest.raises(StartError):
        load(tiny, backends.place("cpu", "fp32", "eager"))
    tiny_engine.warm_up()
    network = tiny_engine.model.network
    network(torch.rand(2, 3, 32, 32)).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


async def test_4_the_lens_makes_its_input_outside_inference_mode(tiny_engine: Engine) -> None:
    with torch.inference_mode():
        made_inside = torch.rand(1, 4)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        two_layers()(made_inside)

    inputs: list[bool] = []
    tiny_engine.model.network.register_forward_pre_hook(lambda _module, given: inputs.append(given[0].is_inference()))
    compare_served(tiny_engine, SMALL)
    assert set(inputs) == {False}


async def test_5_the_lens_compares_with_parameters_that_require_gradients(tiny_engine: Engine) -> None:
    frozen = two_layers().requires_grad_(False)
    assert not frozen(torch.rand(1, 4)).requires_grad, "frozen parameters build no graph"

    assert all(parameter.requires_grad for parameter in tiny_engine.model.network.parameters())
    grad = compare_served(tiny_engine, SMALL).arms[0]
    assert (grad.arm, grad.output.requires_grad) == ("grad", True)


async def test_6_the_lens_measures_gradients_even_if_called_in_inference_mode(tiny_engine: Engine) -> None:
    network, images = two_layers(), torch.rand(1, 4)
    with torch.inference_mode():
        with torch.enable_grad():
            assert not network(images).requires_grad, "enable_grad does not lift inference_mode"
        with torch.inference_mode(False):
            assert network(images).requires_grad
        grad = compare_served(tiny_engine, SMALL).arms[0]
    assert grad.output.requires_grad
    assert grad.retained_bytes > 0


async def test_7_neither_serving_nor_the_lens_moves_batchnorm_or_drops_anything(tiny_engine: Engine) -> None:
    training = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
    before = state_hash(training)
    with torch.inference_mode():
        training(torch.rand(8, 4))
    assert state_hash(training) != before, "inference_mode does not stop BatchNorm"

    served = tiny_engine.model.network
    before = state_hash(served)
    images = [BatchItem(torch.full((3, 32, 32), 90, dtype=torch.uint8), InferenceRequest("classify", top_k=10))]
    first, second = tiny_engine.run(images)[0], tiny_engine.run(images)[0]
    compare_served(tiny_engine, SMALL)
    assert (first.features == second.features).all()
    assert state_hash(served) == before


async def test_8_a_row_of_a_batch_is_the_row_alone_only_to_a_tolerance(default_engine: Engine) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 224, 224, generator=generator)
    with torch.no_grad():
        alone, together = default_engine.model.network(images[:1]), default_engine.model.network(images)
    # Whether a bit differs is the machine's choice; that not much does is what fingerprints promise.
    torch.testing.assert_close(together.features[:1], alone.features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.logits[:1], alone.logits, atol=1e-4, rtol=1e-4)
