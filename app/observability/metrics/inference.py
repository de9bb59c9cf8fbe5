"""Metrics of inference: each counter, histogram and stored gauge is declared and counted here.

Those of HTTP are in sink.py. Gauges that are read from the runtime at each scrape are in collectors.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, get_args

from prometheus_client import Counter, Gauge, Histogram

from app.observability.metrics.families import INSTANCE, MODEL, SECONDS, Families
from gradless.records import ARMS, Comparison
from models.interface.telemetry import (
    BatchReport,
    InstanceId,
    Outcome,
    Stage,
    StageSeconds,
    StaleMessage,
    Task,
    Telemetry,
    Trigger,
)

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

# The device of stages that no model instance does. Prometheus takes an empty label for a missing one.
NO_DEVICE: Final = ""

_STAGES_OF_INSTANCES = ("queue", "forward")
_OTHER_STAGES = ("read", "decode", "respond")

# Replaces the name of a model that is not served. No model can have this name.
_NOT_SERVED = "(not served)"


class InferenceMetrics(Telemetry):
    """Counts what the inference side reports. Thread-safe."""

    def __init__(self, families: Families) -> None:
        self._families = families
        declare = families.declare
        self._images = declare(
            Counter,
            "gradless_images_total",
            "Images by outcome, each counted once: those received completely, and those refused at their headers.",
            MODEL,
            task=get_args(Task),
            outcome=get_args(Outcome),
        )
        self._stage_seconds = declare(
            Histogram,
            "gradless_stage_duration_seconds",
            "Time in each stage: read and respond per request, the other stages per image. queue and forward have a "
            "device.",
            INSTANCE,
            SECONDS,
            stage=_STAGES_OF_INSTANCES,
        )
        self._batch_size = declare(Histogram, "gradless_batch_size", "Images per forward.", INSTANCE, _SIZES)
        self._batches = declare(
            Counter, "gradless_batches_total", "Batches by what started them.", INSTANCE, trigger=get_args(Trigger)
        )
        self._last_batch = declare(
            Gauge, "gradless_last_batch_timestamp_seconds", "Unix time of a model's last batch; 0: none.", MODEL
        )
        self._busy_seconds = declare(
            Counter, "gradless_forward_busy_seconds_total", "Time during which a forward was running.", INSTANCE
        )
        self._out_of_memory = declare(
            Counter, "gradless_out_of_memory_total", "Forwards that ran out of device memory.", INSTANCE
        )
        self._splits = declare(
            Counter, "gradless_batch_splits_total", "Batches split in two after running out of memory.", INSTANCE
        )
        self._stale_messages = declare(
            Counter,
            "gradless_stale_messages_total",
            "Messages between processes dropped because their image no longer existed.",
            message=get_args(StaleMessage),
        )
        self._replacements = declare(
            Counter, "gradless_model_replacements_total", "Models restarted because they stopped working.", MODEL
        )
        self._loads = declare(
            Counter,
            "gradless_model_loads_total",
            "Loads of models and of new versions of them, by outcome.",
            MODEL,
            outcome=("ok", "failed"),
        )
        self._cancelled = declare(
            Counter,
            "gradless_cancelled_total",
            "Images cancelled by a disconnect or their deadline, by the stage they were in.",
            MODEL,
            stage=get_args(Stage),
        )
        self._saved_seconds = declare(
            Counter,
            "gradless_saved_device_seconds_total",
            "Forward time saved by images cancelled before their forward began.",
            MODEL,
        )
        self._arm_seconds, self._arm_peak, self._arm_retained = (
            declare(Gauge, name, f"{what} in the last comparison, by arm.", INSTANCE, mode=ARMS)
            for name, what in (
                ("gradless_forward_seconds", "Median forward time"),
                ("gradless_forward_peak_bytes", "Peak bytes allocated by a forward"),
                ("gradless_forward_retained_bytes", "Bytes that a forward kept for a backward pass"),
            )
        )
        self._loads.create(_NOT_SERVED, "failed")

    def message_dropped(self, message: StaleMessage) -> None:
        self._stale_messages[message,].inc()

    def batch_ran(self, report: BatchReport) -> None:
        instance = report.instance
        self._batch_size[instance].observe(report.size)
        self._batches[*instance, report.trigger].inc()
        self._busy_seconds[instance].inc(report.busy_seconds)
        self._last_batch[report.instance.model,].set_to_current_time()

    def images_done(self, model: str, task: Task, outcome: Outcome, count: int = 1) -> None:
        self._images[model, task, outcome].inc(count)

    def image_took(self, instance: InstanceId, seconds: StageSeconds) -> None:
        stages = self._stage_seconds
        stages[instance.model, NO_DEVICE, "decode"].observe(seconds.decode)
        stages[*instance, "queue"].observe(seconds.queue)
        stages[*instance, "forward"].observe(seconds.forward)

    def image_cancelled(self, model: str, stage: Stage, saved_seconds: float) -> None:
        self._cancelled[model, stage].inc()
        self._saved_seconds[model,].inc(saved_seconds)

    def out_of_memory(self, instance: InstanceId) -> None:
        self._out_of_memory[instance].inc()

    def batch_split(self, instance: InstanceId) -> None:
        self._splits[instance].inc()

    def model_replaced(self, model: str) -> None:
        self._replacements[model,].inc()

    def model_served(self, model: str, devices: Sequence[str]) -> None:
        self.model_shown(model, devices)
        self._loads[model, "ok"].inc()

    def model_shown(self, model: str, devices: Sequence[str]) -> None:
        self._families.add_model(model, devices)
        for stage in _OTHER_STAGES:
            self._stage_seconds.create(model, NO_DEVICE, stage)
        for device in devices:
            self._clear_comparison(InstanceId(model, device))

    def model_not_loaded(self, model: str) -> None:
        loads = self._loads
        # A name that was only requested has no series: clients could create any number of them.
        known = (model, "failed") in loads
        loads[model if known else _NOT_SERVED, "failed"].inc()

    def model_gone(self, model: str) -> None:
        self._families.remove_model(model)

    def compared(self, comparison: Comparison) -> None:
        instance = InstanceId(comparison.model, comparison.device)
        self._clear_comparison(instance)
        for report in comparison.arms:
            self._arm_seconds[*instance, report.arm].set(report.seconds.median)
            if report.retained_bytes is not None:
                self._arm_retained[*instance, report.arm].set(report.retained_bytes)
            if report.peak_bytes is not None:
                self._arm_peak[*instance, report.arm].set(report.peak_bytes)

    def _clear_comparison(self, instance: InstanceId) -> None:
        """Set the gauges of the last comparison to NaN: not measured."""
        for arm in ARMS:
            for family in (self._arm_seconds, self._arm_peak, self._arm_retained):
                family[*instance, arm].set(float("nan"))
