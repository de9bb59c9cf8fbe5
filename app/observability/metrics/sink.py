"""Metrics: what the middleware and the inference side report to, and what /metrics shows."""

from __future__ import annotations

from threading import Lock
from typing import Literal, get_args

from prometheus_client import CollectorRegistry

from app.http.problems import Reason, Row
from app.observability.metrics.counts import CountsReader
from app.observability.metrics.exposition import Exposition
from app.observability.metrics.families import Families
from app.observability.metrics.gauges import RuntimeCollector
from app.observability.metrics.processes import Processes
from app.process.log_writer import DropReason
from app.process.logs import dropped_lines
from gradless.records import ARMS, Comparison
from models.interface.runtime import Runtime
from models.interface.telemetry import BatchReport, Outcome, Stage, StageSeconds, StaleMessage, Task, Trigger

# Why a worker is no more.
WorkerEnd = Literal["ended", "unresponsive"]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_STAGES = ("read", "respond")
# Whatever is no route of the API: its documentation, and paths that are nothing.
_OTHER = "other"
# In place of a model's name; no model can be called so.
_NOT_SERVED = "(not served)"


class Metrics:
    """The telemetry sink of one application, with a registry of its own. Thread-safe."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._processes = Processes()
        self._registry.register(self._processes)
        self._families = Families(self._registry)
        self._exposition = Exposition(self._registry)
        # What other processes count, by their ids.
        self._counts: dict[int, CountsReader] = {}
        self._adding = Lock()
        # Lines of the log that are counted among the dropped.
        self._lines_counted: dict[DropReason, int] = dict.fromkeys(get_args(DropReason), 0)
        for reason in get_args(Reason):
            self._families.rejected.create(reason)
        self._families.loads.create(_NOT_SERVED, "failed")
        for cause in get_args(DropReason):
            self._families.log_lines_dropped.create(cause)
        for why in get_args(WorkerEnd):
            self._families.worker_replacements.create(why)
        for message in get_args(StaleMessage):
            self._families.stale_messages.create(message)

    def expect(self, route: str | None, method: str, status: int) -> None:
        """From now on there is a series, zero if need be, of requests that end so; without a `route`, of those to
        what is none."""
        place = _place(route, method)
        self._families.requests.create(*place, str(status))
        self._families.request_seconds.create(*place, _class_of(status))

    def watch(self, runtime: Runtime) -> None:
        """Read the gauges of `runtime` at each scrape from now on."""
        self._registry.register(RuntimeCollector(runtime))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics as (body, content type): OpenMetrics where `accept` asks for it, else Prometheus text."""
        self.count_dropped_lines()
        with self._adding:
            for counts in self._counts.values():
                self._add(counts)
        return self._exposition.encode(accept)

    def count_dropped_lines(self) -> None:
        """Count the lines of the log that this process has dropped since the last call. They are not counted as they
        are dropped: a signal handler may log, and must not wait for a lock of a counter."""
        with self._adding:
            for reason, lines in dropped_lines().items():
                self._families.log_lines_dropped[reason,].inc(lines - self._lines_counted[reason])
                self._lines_counted[reason] = lines

    def process_started(self, pid: int, counts: CountsReader) -> None:
        """Show what another process of the service counts as well, and what it takes."""
        with self._adding:
            self._counts[pid] = counts
        self._processes.add(pid)

    def process_ended(self, pid: int) -> None:
        """It counts no more. What it has counted remains."""
        self._processes.remove(pid)
        with self._adding:
            counts = self._counts.pop(pid, None)
            if counts is not None:
                self._add(counts)

    def request_done(self, route: str | None, method: str, status: int, seconds: float, request_id: str | None) -> None:
        place = _place(route, method)
        self._families.requests[*place, str(status)].inc()
        # By the exemplar a scraper leads from a slow request's bucket to its log line.
        exemplar = None if request_id is None else {"request_id": request_id}
        self._families.request_seconds[*place, _class_of(status)].observe(seconds, exemplar)

    def refused_by_connection(self, row: Row, seconds: float | None) -> None:
        """What never became a request was ended `seconds` after its first byte: it counts as one of no route and no
        method. None where it was a request, which is counted at its own end."""
        if row.reason is not None:
            self.rejected(row.reason)
        if seconds is not None:
            self.request_done(None, _OTHER, row.status, seconds, None)

    def request_stages(self, model: str, read_seconds: float, respond_seconds: float) -> None:
        self._families.stage_seconds[model, "read"].observe(read_seconds)
        self._families.stage_seconds[model, "respond"].observe(respond_seconds)

    def rejected(self, reason: Reason) -> None:
        self._families.rejected[reason,].inc()

    def worker_replaced(self, why: WorkerEnd) -> None:
        """Another worker takes the place of one."""
        self._families.worker_replacements[why,].inc()

    def message_dropped(self, message: StaleMessage) -> None:
        self._families.stale_messages[message,].inc()

    def batch_ran(self, report: BatchReport) -> None:
        self._families.batch_size[report.model,].observe(report.size)
        self._families.batches[report.model, report.trigger].inc()
        self._families.busy_seconds[report.model,].inc(report.busy_seconds)

    def images_done(self, model: str, task: Task, outcome: Outcome, count: int = 1) -> None:
        self._families.images[model, task, outcome].inc(count)

    def image_took(self, model: str, seconds: StageSeconds) -> None:
        stages = self._families.stage_seconds
        stages[model, "decode"].observe(seconds.decode)
        stages[model, "queue"].observe(seconds.queue)
        stages[model, "forward"].observe(seconds.forward)

    def image_cancelled(self, model: str, stage: Stage, saved_seconds: float) -> None:
        self._families.cancelled[model, stage].inc()
        self._families.saved_seconds[model,].inc(saved_seconds)

    def out_of_memory(self, model: str) -> None:
        self._families.out_of_memory[model,].inc()

    def batch_split(self, model: str) -> None:
        self._families.splits[model,].inc()

    def model_replaced(self, model: str) -> None:
        self._families.replacements[model,].inc()

    def model_served(self, model: str) -> None:
        self.model_shown(model)
        self._families.loads[model, "ok"].inc()

    def model_shown(self, model: str) -> None:
        self._create_series(model)
        self._exposition.forget()

    def model_not_loaded(self, model: str) -> None:
        loads = self._families.loads
        # Whose name was only asked for has no series of its own: there would be no end of them.
        known = (model, "failed") in loads
        loads[model if known else _NOT_SERVED, "failed"].inc()

    def model_gone(self, model: str) -> None:
        self._families.forget(model)
        self._exposition.forget()

    def compared(self, comparison: Comparison) -> None:
        self._forget_comparison(comparison.model)
        families = self._families
        for report in comparison.arms:
            families.arm_seconds[comparison.model, report.arm].set(report.seconds.median)
            families.arm_retained[comparison.model, report.arm].set(report.retained_bytes)
            if report.peak_bytes is not None:
                families.arm_peak[comparison.model, report.arm].set(report.peak_bytes)

    def _add(self, counts: CountsReader) -> None:
        for key, amount, exemplar in counts.changes():
            self._families.add(key, amount, exemplar)

    def _forget_comparison(self, model: str) -> None:
        """What the last comparison did not measure is no number."""
        for arm in ARMS:
            for family in (self._families.arm_seconds, self._families.arm_peak, self._families.arm_retained):
                family[model, arm].set(float("nan"))

    def _create_series(self, model: str) -> None:
        families = self._families
        families.batch_size.create(model)
        for family in (
            families.busy_seconds,
            families.saved_seconds,
            families.out_of_memory,
            families.splits,
            families.replacements,
        ):
            family.create(model)
        for outcome in ("ok", "failed"):
            families.loads.create(model, outcome)
        for trigger in get_args(Trigger):
            families.batches.create(model, trigger)
        for stage in get_args(Stage):
            families.stage_seconds.create(model, stage)
            families.cancelled.create(model, stage)
        for stage in _REQUEST_STAGES:
            families.stage_seconds.create(model, stage)
        for task in get_args(Task):
            for outcome in get_args(Outcome):
                families.images.create(model, task, outcome)
        for arm in ARMS:
            for gauges in (families.arm_seconds, families.arm_peak, families.arm_retained):
                gauges.create(model, arm)
        self._forget_comparison(model)


def _place(route: str | None, method: str) -> tuple[str, str]:
    return route or _OTHER, method if method in _METHODS else _OTHER


def _class_of(status: int) -> str:
    return f"{status // 100}xx"
