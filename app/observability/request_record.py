"""One record per request: the code that handles the request fills it in, and RequestObserver reports it once at the
end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from starlette.types import Scope

from app.http.contract import NATIVE, Contract
from models.interface.admission import Budget
from models.interface.results import Prediction
from models.interface.telemetry import StageSeconds, Task

if TYPE_CHECKING:
    from app.observability.tracing import RequestTrace

_STATE_KEY = "gradless.request_record"


@dataclass(slots=True)
class RequestRecord:
    """Everything known about one request so far. Times (`*_at`) are `perf_counter` values.

    `contract` is the protocol of the request. `held_bytes` is memory for its images besides the `body_bytes`, such as
    those in JSON once they are decoded.
    `stages` is the longest time of any image in each stage, `batch_size` the largest batch that ran one of them,
    `lookup_seconds` the time in the search index, `ended_at` when the response was sent or the client disconnected.
    """

    request_id: str
    body_budget: Budget
    trace: RequestTrace | None = None
    contract: Contract = NATIVE
    body_bytes: int = 0
    held_bytes: int = 0
    started_at: float = field(default_factory=perf_counter)
    model: str | None = None
    task: Task | None = None
    images: int = 0
    read_seconds: float | None = None
    body_read: bool = False
    predictions: Sequence[Prediction] = ()
    stages: StageSeconds | None = None
    batch_size: int | None = None
    lookup_started_at: float | None = None
    lookup_seconds: float | None = None
    results_at: float | None = None
    ended_at: float | None = None
    problem: str | None = None
    status: int | None = None

    def reserve_body_bytes(self, count: int) -> None:
        """Reserve memory for `count` bytes of the body until the request ends. Raises BodyMemoryFullError."""
        self.body_budget.acquire(count)
        self.body_bytes += count

    def reserve_held_bytes(self, count: int) -> None:
        """Reserve memory for `count` more bytes until the request ends. Raises BodyMemoryFullError."""
        self.body_budget.acquire(count)
        self.held_bytes += count

    def start_inference(self, model: str, task: Task, images: int) -> None:
        """Record what the runtime is asked to do."""
        self.model, self.task, self.images = model, task, images

    def add_results(self, predictions: Sequence[Prediction]) -> None:
        """Record the results of all images that did not fail."""
        self.results_at = perf_counter()
        self.predictions = predictions
        if predictions:
            self.stages = StageSeconds(
                decode=max(image.seconds.decode for image in predictions),
                queue=max(image.seconds.queue for image in predictions),
                forward=max(image.seconds.forward for image in predictions),
            )
            self.batch_size = max(image.batch.size for image in predictions)

    def add_lookup(self, started_at: float) -> None:
        """Record that a lookup in the search index, begun at `started_at`, has ended now."""
        self.lookup_started_at = started_at
        self.lookup_seconds = perf_counter() - started_at

    @property
    def respond_seconds(self) -> float | None:
        """Seconds from the last image's result to the end of the response, lookup included; None before its end."""
        return None if self.results_at is None or self.ended_at is None else self.ended_at - self.results_at

    def stage_seconds(self) -> dict[str, float]:
        """Seconds by stage, for the stages that have ended. `lookup` is a part of `respond`."""
        seconds = {}
        if self.read_seconds is not None:
            seconds["read"] = self.read_seconds
        if self.stages is not None:
            seconds |= {"decode": self.stages.decode, "queue": self.stages.queue, "forward": self.stages.forward}
        if self.lookup_seconds is not None:
            seconds["lookup"] = self.lookup_seconds
        if (respond_seconds := self.respond_seconds) is not None:
            seconds["respond"] = respond_seconds
        return seconds

    def server_timing(self) -> str:
        """The value of the Server-Timing header (W3C); durations in milliseconds."""
        parts = self.stage_seconds() | {"total": perf_counter() - self.started_at}
        return ", ".join([f"{name};dur={seconds * 1e3:.3f}" for name, seconds in parts.items()])


def keep_record(scope: Scope, record: RequestRecord) -> None:
    """Store `record` in the request's scope, for `record_of`."""
    scope.setdefault("state", {})[_STATE_KEY] = record


def record_of(scope: Scope) -> RequestRecord:
    """Return the record of the request."""
    record: RequestRecord = scope["state"][_STATE_KEY]
    return record
