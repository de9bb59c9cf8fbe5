"""What the kernel says of the processes of a service: process_* metrics of all of them together."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

# What each process has of its own, and the service has all of. Others are this process's.
_ADDED_GAUGES = frozenset({"process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds"})
_CPU = "process_cpu_seconds"


class Processes(Collector):
    """Of this process, and of those that it is told of by their ids. Of one that has ended the seconds of CPU time
    remain that it had when they were last looked at."""

    def __init__(self) -> None:
        self._own = ProcessCollector(registry=None)
        self._others: dict[int, ProcessCollector] = {}
        self._cpu_seconds: dict[int, float] = {}
        self._cpu_seconds_ended = 0.0
        self._lock = Lock()

    def add(self, pid: int) -> None:
        """Another process is there."""
        with self._lock:
            self._others[pid] = ProcessCollector(pid=lambda: pid, registry=None)

    def remove(self, pid: int) -> None:
        """It has ended."""
        with self._lock:
            self._others.pop(pid, None)
            self._cpu_seconds_ended += self._cpu_seconds.pop(pid, 0.0)

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            others = list(self._others.items())
        told = {pid: {metric.name: metric.samples[0].value for metric in each.collect()} for pid, each in others}
        with self._lock:
            for pid, figures in told.items():
                if pid in self._others and _CPU in figures:
                    self._cpu_seconds[pid] = figures[_CPU]
            cpu_seconds = self._cpu_seconds_ended + sum(self._cpu_seconds.values())
        for metric in self._own.collect():
            [sample] = metric.samples
            value = sample.value
            if metric.name == _CPU:
                value += cpu_seconds
            elif metric.name in _ADDED_GAUGES:
                value += sum(figures.get(metric.name, 0.0) for figures in told.values())
            metric.samples = [sample._replace(value=value)]
            yield metric
