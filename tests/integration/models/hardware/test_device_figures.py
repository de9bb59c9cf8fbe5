"""What is measured of a device, without synchronising it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from gradless import memory as lens_memory
from gradless.memory import recorded_peak
from models.hardware import cores, memory, placement

CPU = torch.device("cpu")
CUDA = torch.device("cuda:0")


Confine = Callable[[dict[str, str]], None]


@pytest.fixture
def confine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Confine:
    """Replace the kernel's control group files by `files`, and the process's own group by `own`."""

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        monkeypatch.setattr(lens_memory, "_CGROUPS", tmp_path)
        monkeypatch.setattr(lens_memory, "_OWN_CGROUPS", tmp_path / "own")

    return write


def test_on_the_cpu_it_is_the_memory_of_process_and_system(confine: Confine) -> None:
    confine({"own": "0::/\n", "memory.max": "max\n"})
    figures = memory.figures(CPU)
    assert figures.keys() == {"allocated", "free", "total"}
    assert figures["total"] == psutil.virtual_memory().total
    assert 0 < figures["allocated"] < figures["total"]
    assert figures["free"] == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize(
    "files",
    [
        {
            "own": "0::/kubepods/pod7\n",
            "kubepods/pod7/memory.max": "max\n",
            "kubepods/pod7/memory.current": "9000\n",
            "kubepods/pod7/memory.stat": "anon 1\ninactive_file 5\n",
            "kubepods/memory.max": "10000\n",
            "kubepods/memory.current": "9000\n",
            "kubepods/memory.stat": "anon 1\ninactive_file 234\n",
        },
        {
            "own": "0::/../../of/the/host\n",
            "memory.max": "10000\n",
            "memory.current": "9000\n",
            "memory.stat": "inactive_file 234\n",
        },
        {
            "own": "5:cpu:/\n4:memory:/box\n0::/\n",
            "memory/box/memory.limit_in_bytes": "10000\n",
            "memory/box/memory.usage_in_bytes": "9000\n",
            "memory/box/memory.stat": "inactive_file 1\ntotal_inactive_file 234\n",
        },
    ],
    ids=["version 2, limit above", "version 2, path of the host", "version 1"],
)
def test_in_a_container_memory_is_the_limit_of_the_container(confine: Confine, files: dict[str, str]) -> None:
    confine(files)
    figures = memory.figures(CPU)
    assert (figures["free"], figures["total"]) == (1234, 10000)
    assert memory.free_bytes(CPU) == 1234


@pytest.mark.parametrize("limit", [2**63 - 4096, 2**50], ids=["no limit", "a petabyte"])
def test_a_container_limit_above_the_memory_of_the_machine_has_no_effect(confine: Confine, limit: int) -> None:
    confine(
        {
            "own": "4:memory:/\n",
            "memory/memory.limit_in_bytes": f"{limit}\n",
            "memory/memory.usage_in_bytes": "9000\n",
            "memory/memory.stat": "total_inactive_file 0\n",
        }
    )
    assert memory.figures(CPU)["total"] == psutil.virtual_memory().total
    assert memory.free_bytes(CPU) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


class CountingAllocator:
    """Stands in for torch.cuda's counters of one device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allocated = self.highest = 0
        statistics = {"memory_allocated": lambda _: self.allocated, "max_memory_allocated": lambda _: self.highest}
        other = {"mem_get_info": lambda _: (0, 0), "memory_reserved": lambda _: 0, "synchronize": lambda _: None}
        for name, answer in {**statistics, **other, "reset_peak_memory_stats": self._reset_peak}.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        monkeypatch.setattr(memory, "_earlier_peaks", {})

    def reach(self, size: int) -> None:
        self.highest = max(self.highest, size)

    def peak(self, device: torch.device) -> int:
        return memory.figures(device)["peak"]

    def _reset_peak(self, _device: torch.device) -> None:
        self.highest = self.allocated


def test_the_peak_of_a_gpu_is_the_highest_value_also_if_the_lens_resets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allocator = CountingAllocator(monkeypatch)
    allocator.allocated = 100
    allocator.reach(900)

    with recorded_peak(CUDA, reset_peak=memory.begin_peak) as recording:
        allocator.reach(300)

    assert recording.peak.bytes == 200
    assert allocator.peak(CUDA) == 900
    # A device without a number is the first.
    assert allocator.peak(torch.device("cuda")) == 900
    assert allocator.peak(torch.device("cuda:1")) == 300

    with recorded_peak(CUDA, reset_peak=memory.begin_peak):
        allocator.reach(1000)
    with recorded_peak(CUDA, reset_peak=memory.begin_peak):
        allocator.reach(500)
    assert allocator.peak(CUDA) == 1000


def test_utilization_is_a_gpus_percentage_as_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []

    def utilization(device: torch.device) -> int:
        devices.append(device)
        return 37

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    assert placement.utilization(CUDA) == 0.37
    assert devices == [CUDA]


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("nvidia-ml-py does not seem to be installed"), RuntimeError("no driver"), Exception()]
)
def test_unavailable_utilization_is_none(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def utilization(_device: torch.device) -> int:
        raise error

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    assert placement.utilization(CUDA) is None


def test_a_cpu_has_no_utilization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "utilization")
    assert placement.utilization(CPU) is None


@pytest.mark.parametrize(("total", "workers", "each"), [(None, 1, 8), (None, 12, 2), (6, 4, 2), (32, 2, 16)], ids=str)
def test_http_workers_share_the_decode_threads(
    monkeypatch: pytest.MonkeyPatch, total: int | None, workers: int, each: int
) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 16)
    assert cores.worker_decode_threads(total, workers) == each
