"""A comparison changes nothing: the served model, memory, and answers to other requests."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradless import compare
from gradless.records import ComparisonOptions
from models.inference.engine import Engine
from models.inference.image_job import BatchItem
from models.interface.request import InferenceRequest
from models.interface.results import Prediction
from models.serving.lens import compare_served
from models.serving.runtime import LocalRuntime

pytestmark = pytest.mark.usefixtures("one_core")

THOROUGH = ComparisonOptions(batch_size=4, iterations=2, sweep=(1, 2, 8))

State = list[tuple[str, bool, bool, str]]


def state(network: nn.Module) -> State:
    """Of each parameter and buffer: its name, its flag, whether it has a gradient, and a hash of its bytes."""
    return [
        (
            name,
            tensor.requires_grad,
            tensor.grad is not None,
            hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest(),
        )
        for name, tensor in network.state_dict(keep_vars=True).items()
    ]


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())  # noqa: SLF001


def live_tensors() -> int:
    gc.collect()
    # type(), for isinstance would wake lazy objects of other libraries.
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_a_comparison_changes_no_weight_buffer_flag_or_gradient(tiny_engine: Engine) -> None:
    networks = [tiny_engine.model.network, tiny_engine.served_network]
    before = [state(network) for network in networks if network is not None]
    compare_served(tiny_engine, THOROUGH)
    compare_served(tiny_engine, THOROUGH, image=torch.zeros(3, 32, 32, dtype=torch.uint8))
    assert [state(network) for network in networks if network is not None] == before
    assert len(before) == 2
    assert not any(has_gradient for of_one in before for _, _, has_gradient, _ in of_one)
    for network in networks:
        assert network is not None
        assert hooks(network) == 0
        assert not any(module.training for module in network.modules())


def test_a_partly_frozen_network_keeps_its_flags() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    network[0].requires_grad_(False)
    before = state(network)
    (report,) = compare(network, torch.rand(2, 4), arms=("grad",), iterations=1).arms
    assert report.backward.works
    assert state(network) == before


def test_served_answers_are_bit_identical_after_a_comparison(tiny_engine: Engine) -> None:
    generator = torch.Generator().manual_seed(1)
    items = [
        BatchItem(
            torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=generator),
            InferenceRequest("classify", top_k=3),
        )
        for _ in range(4)
    ]
    before = tiny_engine.run(items)
    compare_served(tiny_engine, THOROUGH)
    for one, other in zip(before, tiny_engine.run(items), strict=True):
        assert np.array_equal(one.features, other.features)
        assert np.array_equal(one.probabilities, other.probabilities)


def test_a_comparison_leaves_no_tensor_alive(tiny_engine: Engine) -> None:
    # A ReLU's backward needs its own output: kept wrongly, the graph and the output hold one another for good.
    compare_served(tiny_engine, THOROUGH)
    before = live_tensors()
    for _ in range(3):
        compare_served(tiny_engine, THOROUGH)
    assert live_tensors() == before


def test_memory_returns_to_its_level_after_a_comparison(warm_command: Any) -> None:
    done = warm_command.run([Path(__file__).with_name("memory_after_comparison.py")], os.environ)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20e6


def test_a_comparison_restores_the_random_state(tiny_engine: Engine) -> None:
    before = torch.get_rng_state()
    compare_served(tiny_engine, THOROUGH)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_comparison_restores_the_autograd_mode(tiny_engine: Engine) -> None:
    with torch.inference_mode():
        compare_served(tiny_engine, THOROUGH)
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        compare_served(tiny_engine, THOROUGH)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.anyio
async def test_answers_during_a_comparison_are_bit_identical(serving: LocalRuntime, clock_png: bytes) -> None:
    async def answer() -> Prediction:
        (found,) = (await serving.predict(None, InferenceRequest("classify", [clock_png], top_k=10))).results
        assert isinstance(found, Prediction)
        return found

    before = await answer()
    comparison = asyncio.create_task(serving.compare(None, ComparisonOptions(batch_size=8, iterations=50)))
    during = []
    while not comparison.done():
        during.append(await answer())
    await comparison
    assert during
    for found in (*during, await answer()):
        assert found.classes == before.classes
        assert np.array_equal(found.features, before.features)
