"""Figures that are read when a scraper asks, not kept up to date in between. Reading them waits for no forward and
synchronises no device."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from models.interface.runtime import Runtime


class RuntimeCollector(Collector):
    """What a runtime says of itself at the moment."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._device = next(iter(runtime.cards.values())).device
        # Read off the disk, so once.
        self._versions = [version("gradless"), platform.python_version(), version("torch"), version("torchvision")]

    def collect(self) -> Iterable[Metric]:
        yield from self._queues()
        yield from self._batchers()
        yield from self._models()
        yield from self._device_figures()
        build = _gauge("gradless_build_info", "Always 1.", "version", "python", "torch", "torchvision", "device")
        build.add_metric([*self._versions, self._device], 1)
        yield build

    def _queues(self) -> Iterator[Metric]:
        depth = _gauge("gradless_queue_depth", "Images waiting for a batch.", "model")
        age = _gauge("gradless_queue_oldest_age_seconds", "How long the first of them has waited.", "model")
        in_flight = _gauge("gradless_in_flight_images", "Images admitted and not yet answered.", "model")
        capacity = _gauge("gradless_queue_capacity_images", "Images admitted at once, at most.", "model")
        for name, state in self._runtime.queues().items():
            depth.add_metric([name], state.depth)
            age.add_metric([name], state.oldest_age_seconds)
            in_flight.add_metric([name], state.in_flight)
            capacity.add_metric([name], state.capacity)
        yield from (depth, age, in_flight, capacity)

    def _batchers(self) -> Iterator[Metric]:
        alive = _gauge("gradless_batcher_alive", "1 when the threads that run the batches live.", "model")
        running = _gauge("gradless_batch_running_seconds", "Age of the batch under way, 0 between batches.", "model")
        limit = _gauge(
            "gradless_batch_size_limit", "Images in a forward, at most: fewer once the memory was too little.", "model"
        )
        for name, state in self._runtime.batchers().items():
            alive.add_metric([name], state.alive)
            running.add_metric([name], state.running_seconds)
            limit.add_metric([name], state.max_batch_size)
        yield from (alive, running, limit)

    def _models(self) -> Iterator[Metric]:
        labels = ("model", "device", "dtype", "backend")
        ready = _gauge("gradless_model_ready", "1 when requests are answered.", *labels)
        load = _gauge("gradless_model_load_seconds", "Time the model took to load.", *labels)
        weights = _gauge("gradless_model_weights_bytes", "Bytes of its parameters and buffers.", *labels)
        info = _gauge("gradless_model_info", "Always 1.", "model", "architecture", "fingerprint", "version")
        is_ready = float(self._runtime.ready)
        for card in self._runtime.cards.values():
            values = [card.name, card.device, card.dtype, card.backend]
            ready.add_metric(values, is_ready)
            load.add_metric(values, card.load_seconds)
            weights.add_metric(values, card.weight_bytes)
            info.add_metric([card.name, card.architecture, card.fingerprint, str(card.version)], 1)
        yield from (ready, load, weights, info)

    def _device_figures(self) -> Iterator[Metric]:
        memory = _gauge(
            "gradless_device_memory_bytes",
            "Memory of the device; on the CPU, of the process, and of its container or the system.",
            "device",
            "kind",
        )
        for kind, size in self._runtime.memory_bytes().items():
            memory.add_metric([self._device, kind], size)
        yield memory
        utilization = self._runtime.utilization()
        if utilization is not None:
            busy = _gauge(
                "gradless_device_utilization_ratio", "Share of the last second or less with a kernel running.", "device"
            )
            busy.add_metric([self._device], utilization)
            yield busy


def _gauge(name: str, help_text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help_text, labels=labels)
