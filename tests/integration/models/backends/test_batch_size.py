"""What follows from the cores where nobody says: images of a forward, and threads that decode."""

from __future__ import annotations

import pytest
import torch

from models.backends import batch_shapes
from models.hardware import cores
from models.hardware.placement import BackendName, Placement

LIGHT, HEAVY = 20 * 10**6, 100 * 10**6


@pytest.fixture(autouse=True)
def core_count(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: request.param)


@pytest.mark.parametrize(("core_count", "images"), [(1, 4), (2, 8), (6, 24), (64, 32)], indirect=["core_count"])
@pytest.mark.parametrize("backend", ["openvino", "compiled", "eager"])
def test_on_a_cpu_it_is_four_for_each_core_and_thirty_two_at_most(backend: BackendName, images: int) -> None:
    assert batch_shapes.batch_size(Placement(torch.device("cpu"), "fp32", backend), LIGHT) == images


@pytest.mark.parametrize("core_count", [2, 64], indirect=True)
def test_pytorch_runs_heavy_networks_in_sixteens() -> None:
    assert batch_shapes.batch_size(Placement(torch.device("cpu"), "fp32", "eager"), HEAVY) == 16


@pytest.mark.parametrize("core_count", [2], indirect=True)
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_on_a_gpu_it_is_thirty_two_whatever_the_cores(device: str) -> None:
    assert batch_shapes.batch_size(Placement(torch.device(device), "fp32", "eager"), LIGHT) == 32


@pytest.mark.parametrize(("core_count", "threads"), [(1, 1), (2, 2), (8, 8), (16, 8)], indirect=["core_count"])
def test_a_thread_decodes_for_each_core_and_eight_at_most(threads: int) -> None:
    assert cores.decode_threads() == threads
