"""Defaults that follow from the number of cores: images of one forward, and decode threads."""

from __future__ import annotations

import pytest
import torch

from models.backends.backend import default_max_batch_size
from models.backends.pytorch import cpu_split, default_size
from models.hardware import cores

LIGHT, HEAVY = 20 * 10**6, 100 * 10**6
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def core_count(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: request.param)


@pytest.mark.parametrize(("core_count", "images"), [(1, 4), (2, 8), (6, 24), (64, 32)], indirect=["core_count"])
def test_a_batch_on_a_cpu_has_at_most_four_images_per_core_and_32_in_all(images: int) -> None:
    assert default_max_batch_size(CPU) == default_size(CPU, cpu_split(LIGHT)) == images


@pytest.mark.parametrize("core_count", [2, 64], indirect=True)
def test_pytorch_runs_heavy_networks_in_batches_of_16() -> None:
    assert default_size(CPU, cpu_split(HEAVY)) == 16


@pytest.mark.parametrize("core_count", [2], indirect=True)
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_batch_on_a_gpu_has_at_most_32_images_whatever_the_cores(device: str) -> None:
    assert default_size(torch.device(device), None) == default_max_batch_size(torch.device(device)) == 32


@pytest.mark.parametrize(("core_count", "threads"), [(1, 1), (2, 2), (8, 8), (16, 8)], indirect=["core_count"])
def test_there_is_one_decode_thread_per_core_and_at_most_eight(threads: int) -> None:
    assert cores.decode_threads() == threads
