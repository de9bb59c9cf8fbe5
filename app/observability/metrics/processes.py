"""The process_* metrics, summed over all processes of the service."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

# Summed over the processes; other gauges, such as the start time, are those of this process.
_SUMMED_GAUGES = frozenset({"process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds"})
_CPU = "process_cpu_seconds"


class Processes(Collector):
    """Collects the metrics of this process and of those that were added.

    The CPU time of a process that has ended stays in the sum, as of the last scrape.
    """

    def __init__(self) -> None:
        self._own = ProcessCollector(registry=None)
        self._others: dict[int, ProcessCollector] = {}
        self._cpu_seconds: dict[int, float] = {}
        self._cpu_seconds_ended = 0.0
        self._lock = Lock()

    def add(self, pid: int) -> None:
        """Include another process."""
        with self._lock:
            self._others[pid] = ProcessCollector(pid=lambda: pid, registry=None)

    def remove(self, pid: int) -> None:
        """Exclude a process that has ended."""
        with self._lock:
            self._others.pop(pid, None)
            self._cpu_seconds_ended += self._cpu_seconds.pop(pid, 0.0)

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            others = list(self._others.items())
        # Read from /proc, so without the lock.
        values = {pid: {metric.name: metric.samples[0].value for metric in each.collect()} for pid, each in others}
        with self._lock:
            for pid, of_process in values.items():
                if pid in self._others and _CPU in of_process:
                    self._cpu_seconds[pid] = of_process[_CPU]
            cpu_seconds = self._cpu_seconds_ended + sum(self._cpu_seconds.values())
        for metric in self._own.collect():
            [sample] = metric.samples
            value = sample.value
            if metric.name == _CPU:
                value += cpu_seconds
            elif metric.name in _SUMMED_GAUGES:
                value += sum(of_process.get(metric.name, 0.0) for of_process in values.values())
            metric.samples = [sample._replace(value=value)]
            yield metric
