"""Metrics: the telemetry sink of an application. It counts requests, and encodes all metrics for /metrics."""

from __future__ import annotations

from threading import Lock
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram

from app.http.contract import NATIVE, Contract
from app.http.problems import Reason, Row
from app.observability.metrics.collectors import Processes, RuntimeCollector
from app.observability.metrics.counts import CountsReader
from app.observability.metrics.exposition import encode
from app.observability.metrics.families import MODEL, SECONDS, Families
from app.observability.metrics.inference import NO_DEVICE, InferenceMetrics
from app.process.log_writer import DropReason
from app.process.logs import dropped_lines
from models.interface.runtime import Runtime

# Whether a request whose images reached a model was answered without an error.
Answered = Literal["ok", "failed"]

# Why an HTTP worker was replaced.
WorkerEnd = Literal["ended", "unresponsive"]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST = ("route", "method", "code", "contract")
# Route and method of requests that match no route of the API: its documentation, and unknown paths.
_OTHER = "other"


class Metrics(InferenceMetrics):
    """The telemetry sink of one application, with a registry of its own. Thread-safe."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._processes = Processes()
        self._registry.register(self._processes)
        super().__init__(Families(self._registry))
        declare = self._families.declare
        self._requests = declare(
            Counter, "gradless_requests_total", "HTTP requests by route, method, status and protocol.", _REQUEST
        )
        # By class of status, 2xx: a histogram per status would double the number of series.
        self._request_seconds = declare(
            Histogram,
            "gradless_request_duration_seconds",
            "Time from a request's first byte to the last byte of its response.",
            _REQUEST,
            SECONDS,
        )
        self._model_requests = declare(
            Counter,
            "gradless_model_requests_total",
            "Requests whose images reached a model, by whether they were answered.",
            MODEL,
            outcome=get_args(Answered),
        )
        self._model_request_seconds = declare(
            Counter,
            "gradless_model_request_seconds_total",
            "Time of the requests whose images reached a model.",
            MODEL,
            outcome=get_args(Answered),
        )
        self._rejected = declare(
            Counter, "gradless_rejected_total", "Refusals of requests and images, by reason.", reason=get_args(Reason)
        )
        self._worker_replacements = declare(
            Counter,
            "gradless_worker_replacements_total",
            "HTTP workers that were replaced because they had ended or were unresponsive.",
            reason=get_args(WorkerEnd),
        )
        self._log_lines_dropped = declare(
            Counter,
            "gradless_log_lines_dropped_total",
            "Log lines dropped because the queue to the writer was full or the write failed.",
            reason=get_args(DropReason),
        )
        # Counts of other processes, by process id.
        self._counts: dict[int, CountsReader] = {}
        self._adding = Lock()
        # Dropped log lines that gradless_log_lines_dropped_total includes already.
        self._lines_counted: dict[DropReason, int] = dict.fromkeys(get_args(DropReason), 0)

    def expect(self, route: str | None, method: str, status: int) -> None:
        """Create the series of native requests with this outcome, at zero. `route` None: they match no route."""
        labels = _request_labels(route, method)
        self._requests.create(*labels, str(status), NATIVE.name)
        self._request_seconds.create(*labels, _class_of(status), NATIVE.name)

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
                self._log_lines_dropped[reason,].inc(lines - self._lines_counted[reason])
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
        self._requests[*labels, str(status), contract.name].inc()
        exemplar = None if request_id is None else {"request_id": request_id}
        self._request_seconds[*labels, _class_of(status), contract.name].observe(seconds, exemplar)

    def refused_by_connection(self, row: Row, seconds: float | None) -> None:
        """Count bytes that never became a request, refused `seconds` after the first. They count as a request without
        route and method. `seconds` None: they had become a request, which is counted when it ends."""
        self.rejected(row.reason)
        if seconds is not None:
            self.request_done(None, _OTHER, row.status, seconds, None)

    def request_stages(self, model: str, read_seconds: float, respond_seconds: float) -> None:
        self._stage_seconds[model, NO_DEVICE, "read"].observe(read_seconds)
        self._stage_seconds[model, NO_DEVICE, "respond"].observe(respond_seconds)

    def model_request_done(self, model: str, outcome: Answered, seconds: float) -> None:
        """Count a request whose images reached a model."""
        self._model_requests[model, outcome].inc()
        self._model_request_seconds[model, outcome].inc(seconds)

    def rejected(self, reason: Reason | None) -> None:
        """Count a refusal. None: the error is no refusal, and is not counted."""
        if reason is not None:
            self._rejected[reason,].inc()

    def worker_replaced(self, why: WorkerEnd) -> None:
        """Count an HTTP worker that is restarted."""
        self._worker_replacements[why,].inc()


def _request_labels(route: str | None, method: str) -> tuple[str, str]:
    return route or _OTHER, method if method in _METHODS else _OTHER


def _class_of(status: int) -> str:
    return f"{status // 100}xx"
