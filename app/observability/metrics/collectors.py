"""Metrics that are read at each scrape: gauges of the runtime, and the process_* metrics of the service's processes.

Reading them waits for no forward and does not synchronise the device.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from threading import Lock

from prometheus_client import ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from models.interface.results import ModelCard
from models.interface.runtime import Runtime
from models.interface.telemetry import InstanceId

# Summed over the processes; other gauges, such as the start time, are those of this process.
_SUMMED_GAUGES = frozenset({"process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds"})
_CPU = "process_cpu_seconds"


class RuntimeCollector(Collector):
    """Collects the gauges of a runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._device = next(iter(runtime.cards.values())).device
        # Read from disk, so only once.
        self._versions = [version("gradless"), platform.python_version(), version("torch"), version("torchvision")]

    def collect(self) -> Iterable[Metric]:
        cards = self._runtime.cards
        yield from self._admissions()
        yield from self._instances()
        yield from self._models(cards)
        yield from self._devices()
        labels = ("version", "python", "torch", "torchvision", "device")
        build = _gauge("gradless_build_info", "Versions; always 1.", *labels)
        build.add_metric([*self._versions, self._device], 1)
        yield build

    def _admissions(self) -> Iterator[Metric]:
        in_flight = _gauge("gradless_in_flight_images", "Images admitted and not yet answered.", "model")
        capacity = _gauge("gradless_queue_capacity_images", "Maximum of images in flight.", "model")
        for name, state in self._runtime.admissions().items():
            in_flight.add_metric([name], state.in_flight)
            capacity.add_metric([name], state.capacity)
        yield from (in_flight, capacity)

    def _instances(self) -> Iterator[Metric]:
        labels = InstanceId._fields
        depth = _gauge("gradless_queue_depth", "Images waiting for a batch.", *labels)
        age = _gauge("gradless_queue_oldest_age_seconds", "Waiting time of the oldest of them.", *labels)
        alive = _gauge("gradless_batcher_alive", "1 while the batcher's threads are alive.", *labels)
        running = _gauge("gradless_batch_running_seconds", "Age of the running batch, 0 between batches.", *labels)
        limit = _gauge(
            "gradless_batch_size_limit", "Maximum of images per forward; lowered after running out of memory.", *labels
        )
        for instance, state in self._runtime.instances().items():
            depth.add_metric(instance, state.depth)
            age.add_metric(instance, state.oldest_age_seconds)
            alive.add_metric(instance, state.alive)
            running.add_metric(instance, state.running_seconds)
            limit.add_metric(instance, state.max_batch_size)
        yield from (depth, age, alive, running, limit)

    def _models(self, cards: Mapping[str, ModelCard]) -> Iterator[Metric]:
        labels = ("model", "device", "dtype", "backend")
        ready = _gauge("gradless_model_ready", "1 while the server answers requests.", *labels)
        load = _gauge("gradless_model_load_seconds", "Time the model took to load.", *labels)
        weights = _gauge("gradless_model_weights_bytes", "Bytes of the model's parameters and buffers.", *labels)
        info_labels = ("model", "architecture", "fingerprint", "version")
        info = _gauge("gradless_model_info", "Architecture, fingerprint and version; always 1.", *info_labels)
        is_ready = float(self._runtime.ready)
        for card in cards.values():
            for device in card.devices:
                values = [card.name, device, card.dtype, card.backend]
                ready.add_metric(values, is_ready)
                load.add_metric(values, card.load_seconds)
                weights.add_metric(values, card.weight_bytes)
            info.add_metric([card.name, card.architecture, card.fingerprint, str(card.version)], 1)
        yield from (ready, load, weights, info)

    def _devices(self) -> Iterator[Metric]:
        memory = _gauge(
            "gradless_device_memory_bytes",
            "Memory of the device; on the CPU, of the process and of its container or the system.",
            "device",
            "kind",
        )
        busy = _gauge(
            "gradless_device_utilization_ratio",
            "Share of the last second or less during which a kernel was running.",
            "device",
        )
        for device, state in self._runtime.devices().items():
            for kind, size in state.memory.items():
                memory.add_metric([device, kind], size)
            if state.utilization is not None:
                busy.add_metric([device], state.utilization)
        yield memory
        if busy.samples:
            yield busy


def _gauge(name: str, help_text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help_text, labels=labels)


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
