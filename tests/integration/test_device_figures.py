"""What is measured of a device, without synchronising it."""

from __future__ import annotations

import psutil
import pytest
import torch

from models import devices, memory

CPU = torch.device("cpu")
CUDA = torch.device("cuda:0")


def test_on_the_cpu_it_is_the_memory_of_process_and_system() -> None:
    figures = memory.figures(CPU)
    assert figures.keys() == {"allocated", "free", "total"}
    assert figures["total"] == psutil.virtual_memory().total
    assert 0 < figures["allocated"] < figures["total"]
    assert 0 < figures["free"] < figures["total"]


def test_utilization_is_a_gpus_percentage_as_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def utilization(device: torch.device) -> int:
        asked.append(device)
        return 37

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    assert devices.utilization(CUDA) == 0.37
    assert asked == [CUDA]


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("nvidia-ml-py does not seem to be installed"), RuntimeError("no driver"), Exception()]
)
def test_utilization_that_cannot_be_had_is_none(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def utilization(_device: torch.device) -> int:
        raise error

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    assert devices.utilization(CUDA) is None


def test_nobody_is_asked_for_the_utilization_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "utilization")
    assert devices.utilization(CPU) is None
