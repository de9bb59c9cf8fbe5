"""What follows from the cores where nobody says: images of a forward, and threads that decode."""

from __future__ import annotations

import pytest
import torch

from models import devices
from models.devices import BackendName, Placement

LIGHT, HEAVY = 20 * 10**6, 100 * 10**6


@pytest.fixture(autouse=True)
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available_cores", lambda: request.param)


@pytest.mark.parametrize(("cores", "images"), [(1, 4), (2, 8), (6, 24), (64, 32)], indirect=["cores"])
@pytest.mark.parametrize("backend", ["openvino", "compiled", "eager"])
def test_on_a_cpu_it_is_four_for_each_core_and_thirty_two_at_most(backend: BackendName, images: int) -> None:
    assert devices.batch_size(Placement(torch.device("cpu"), "fp32", backend), LIGHT) == images


@pytest.mark.parametrize("cores", [2, 64], indirect=True)
def test_pytorch_runs_heavy_networks_in_sixteens() -> None:
    assert devices.batch_size(Placement(torch.device("cpu"), "fp32", "eager"), HEAVY) == 16


@pytest.mark.parametrize("cores", [2], indirect=True)
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_on_a_gpu_it_is_thirty_two_whatever_the_cores(device: str) -> None:
    assert devices.batch_size(Placement(torch.device(device), "fp32", "eager"), LIGHT) == 32


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (8, 8), (16, 8)], indirect=["cores"])
def test_a_thread_decodes_for_each_core_and_eight_at_most(threads: int) -> None:
    assert devices.decode_threads() == threads
