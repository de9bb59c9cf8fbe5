"""Metrics: the telemetry sink of an application. It counts events, and encodes all metrics for /metrics."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import get_args

from prometheus_client import CollectorRegistry

from app.http.contract import NATIVE, Contract
from app.http.problems import Reason, Row
from app.observability.metrics.collectors import Processes, RuntimeCollector
from app.observability.metrics.counts import CountsReader
from app.observability.metrics.exposition import encode
from app.observability.metrics.families import NO_DEVICE, Answered, Families, WorkerEnd
from app.process.log_writer import DropReason
from app.process.logs import dropped_lines
from gradless.records import ARMS, Comparison
from models.interface.runtime import Runtime
from models.interface.telemetry import (
    BatchReport,
    InstanceId,
    Outcome,
    Stage,
    StageSeconds,
    StaleMessage,
    Task,
    Telemetry,
)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Route and method of requests that match no route of the API: its documentation, and unknown paths.
_OTHER = "other"
# Replaces the name of a model that is not served. No model can have this name.
_NOT_SERVED = "(not served)"


class Metrics(Telemetry):
    """The telemetry sink of one application, with a registry of its own. Thread-safe."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._processes = Processes()
        self._registry.register(self._processes)
        self._families = Families(self._registry)
        # Counts of other processes, by process id.
        self._counts: dict[int, CountsReader] = {}
        self._adding = Lock()
        # Dropped log lines that gradless_log_lines_dropped_total includes already.
        self._lines_counted: dict[DropReason, int] = dict.fromkeys(get_args(DropReason), 0)
        self._families.loads.create(_NOT_SERVED, "failed")

    def expect(self, route: str | None, method: str, status: int) -> None:
        """Create the series of native requests with this outcome, at zero. `route` None: they match no route."""
        labels = _request_labels(route, method)
        self._families.requests.create(*labels, str(status), NATIVE.name)
        self._families.request_seconds.create(*labels, _class_of(status), NATIVE.name)

    def watch(self, runtime: Runtime) -> None:
        """Read the gauges of `runtime` at each scrape from now on."""
        self._registry.register(RuntimeCollector(runtime))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics as (body, content type): OpenMetrics if `accept` asks for it, else Prometheus text."""
        self.count_dropped_lines()
        with self._adding:
            for counts in self._counts.values():
                self._add(counts)
        return encode(self._registry, accept)

    def count_dropped_lines(self) -> None:
        """Count the log lines that this process has dropped since the last call.

        They are not counted when they are dropped: a signal handler may log, and must not wait for a counter's lock.
        """
        with self._adding:
            for reason, lines in dropped_lines().items():
                self._families.log_lines_dropped[reason,].inc(lines - self._lines_counted[reason])
                self._lines_counted[reason] = lines

    def process_started(self, pid: int, counts: CountsReader) -> None:
        """Include the counts and the resources of another process of the service."""
        with self._adding:
            self._counts[pid] = counts
        self._processes.add(pid)

    def process_ended(self, pid: int) -> None:
        """Keep what the process has counted, and forget the process."""
        self._processes.remove(pid)
        with self._adding:
            counts = self._counts.pop(pid, None)
            if counts is not None:
                self._add(counts)

    def _add(self, counts: CountsReader) -> None:
        """Add what another process has counted since the last call, so that no counter falls when it ends."""
        for key, amount, exemplar in counts.changes():
            self._families.add(key, amount, exemplar)

    def request_done(
        self,
        route: str | None,
        method: str,
        status: int,
        seconds: float,
        request_id: str | None,
        contract: Contract = NATIVE,
    ) -> None:
        """Count a request. `request_id` becomes the exemplar, which leads from a slow bucket to a log line."""
        labels = _request_labels(route, method)
        self._families.requests[*labels, str(status), contract.name].inc()
        exemplar = None if request_id is None else {"request_id": request_id}
        self._families.request_seconds[*labels, _class_of(status), contract.name].observe(seconds, exemplar)

    def refused_by_connection(self, row: Row, seconds: float | None) -> None:
        """Count bytes that never became a request, refused `seconds` after the first. They count as a request without
        route and method. `seconds` None: they had become a request, which is counted when it ends."""
        if row.reason is not None:
            self.rejected(row.reason)
        if seconds is not None:
            self.request_done(None, _OTHER, row.status, seconds, None)

    def request_stages(self, model: str, read_seconds: float, respond_seconds: float) -> None:
        self._families.stage_seconds[model, NO_DEVICE, "read"].observe(read_seconds)
        self._families.stage_seconds[model, NO_DEVICE, "respond"].observe(respond_seconds)

    def model_request_done(self, model: str, outcome: Answered, seconds: float) -> None:
        """Count a request whose images reached a model."""
        self._families.model_requests[model, outcome].inc()
        self._families.model_request_seconds[model, outcome].inc(seconds)

    def rejected(self, reason: Reason) -> None:
        self._families.rejected[reason,].inc()

    def worker_replaced(self, why: WorkerEnd) -> None:
        """Count an HTTP worker that is restarted."""
        self._families.worker_replacements[why,].inc()

    def message_dropped(self, message: StaleMessage) -> None:
        self._families.stale_messages[message,].inc()

    def batch_ran(self, report: BatchReport) -> None:
        instance = report.instance
        self._families.batch_size[instance].observe(report.size)
        self._families.batches[*instance, report.trigger].inc()
        self._families.busy_seconds[instance].inc(report.busy_seconds)
        self._families.last_batch[report.instance.model,].set_to_current_time()

    def images_done(self, model: str, task: Task, outcome: Outcome, count: int = 1) -> None:
        self._families.images[model, task, outcome].inc(count)

    def image_took(self, instance: InstanceId, seconds: StageSeconds) -> None:
        stages = self._families.stage_seconds
        stages[instance.model, NO_DEVICE, "decode"].observe(seconds.decode)
        stages[*instance, "queue"].observe(seconds.queue)
        stages[*instance, "forward"].observe(seconds.forward)

    def image_cancelled(self, model: str, stage: Stage, saved_seconds: float) -> None:
        self._families.cancelled[model, stage].inc()
        self._families.saved_seconds[model,].inc(saved_seconds)

    def out_of_memory(self, instance: InstanceId) -> None:
        self._families.out_of_memory[instance].inc()

    def batch_split(self, instance: InstanceId) -> None:
        self._families.splits[instance].inc()

    def model_replaced(self, model: str) -> None:
        self._families.replacements[model,].inc()

    def model_served(self, model: str, devices: Sequence[str]) -> None:
        self.model_shown(model, devices)
        self._families.loads[model, "ok"].inc()

    def model_shown(self, model: str, devices: Sequence[str]) -> None:
        self._families.add_model(model, devices)
        for device in devices:
            self._clear_comparison(InstanceId(model, device))

    def model_not_loaded(self, model: str) -> None:
        loads = self._families.loads
        # A name that was only requested has no series: clients could create any number of them.
        known = (model, "failed") in loads
        loads[model if known else _NOT_SERVED, "failed"].inc()

    def model_gone(self, model: str) -> None:
        self._families.remove_model(model)

    def compared(self, comparison: Comparison) -> None:
        instance = InstanceId(comparison.model, comparison.device)
        self._clear_comparison(instance)
        families = self._families
        for report in comparison.arms:
            families.arm_seconds[*instance, report.arm].set(report.seconds.median)
            if report.retained_bytes is not None:
                families.arm_retained[*instance, report.arm].set(report.retained_bytes)
            if report.peak_bytes is not None:
                families.arm_peak[*instance, report.arm].set(report.peak_bytes)

    def _clear_comparison(self, instance: InstanceId) -> None:
        """Set the gauges of the last comparison to NaN: not measured."""
        for arm in ARMS:
            for family in (self._families.arm_seconds, self._families.arm_peak, self._families.arm_retained):
                family[*instance, arm].set(float("nan"))


def _request_labels(route: str | None, method: str) -> tuple[str, str]:
    return route or _OTHER, method if method in _METHODS else _OTHER


def _class_of(status: int) -> str:
    return f"{status // 100}xx"
