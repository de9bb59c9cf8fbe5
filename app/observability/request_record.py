"""What is known of a request while it is answered: noted where it happens, told once at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from starlette.types import Scope

from models.interface.admission import Budget
from models.interface.results import Prediction
from models.interface.telemetry import StageSeconds, Task

_KEY = "gradless.observed"


class RequestTrace(Protocol):
    """A request's place in a distributed trace. `trace_id` is 32 hex digits; `response_header` is what its caller
    gets as traceresponse (W3C Trace Context, level 2)."""

    @property
    def trace_id(self) -> str: ...

    @property
    def response_header(self) -> str: ...

    def end(self, request: RequestRecord, route: str | None, status: int) -> None:
        """The request has been answered, or its caller has gone."""


@dataclass(slots=True)
class RequestRecord:
    """What is known so far; times as of `perf_counter`. `stages` holds the longest time any of its images spent in
    each, `batch_size` the largest batch any of them was in, `lookup_seconds` the time in the search index. `ended_at`
    is known once the answer has been sent, or its caller has gone."""

    request_id: str
    held: Budget
    trace: RequestTrace | None = None
    held_bytes: int = 0
    started_at: float = field(default_factory=perf_counter)
    model: str | None = None
    task: Task | None = None
    images: int = 0
    read_seconds: float | None = None
    body_read: bool = False
    predicted: Sequence[Prediction] = ()
    stages: StageSeconds | None = None
    batch_size: int | None = None
    lookup_started_at: float | None = None
    lookup_seconds: float | None = None
    answered_at: float | None = None
    ended_at: float | None = None
    problem: str | None = None
    status: int | None = None

    def hold(self, count: int) -> None:
        """Count bytes of its body until its end. Raises BodyMemoryFullError."""
        self.held.acquire(count)
        self.held_bytes += count

    def asks(self, model: str, task: Task, images: int) -> None:
        """Note what the inference side is about to be asked."""
        self.model, self.task, self.images = model, task, images

    def answered(self, predicted: Sequence[Prediction]) -> None:
        """Note that the inference side has answered, for the images that have no fault."""
        self.answered_at = perf_counter()
        self.predicted = predicted
        if predicted:
            self.stages = StageSeconds(
                decode=max(image.seconds.decode for image in predicted),
                queue=max(image.seconds.queue for image in predicted),
                forward=max(image.seconds.forward for image in predicted),
            )
            self.batch_size = max(image.batch.size for image in predicted)

    def looked_up(self, started_at: float) -> None:
        """Note that the search index has answered, which was asked at `started_at`."""
        self.lookup_started_at = started_at
        self.lookup_seconds = perf_counter() - started_at

    @property
    def respond_seconds(self) -> float | None:
        """From the last image's result to the answer sent, a lookup included; None before its end."""
        return None if self.answered_at is None or self.ended_at is None else self.ended_at - self.answered_at

    def stage_seconds(self) -> dict[str, float]:
        """The stages it has been through, by name. `lookup` is a part of `respond`."""
        found = {}
        if self.read_seconds is not None:
            found["read"] = self.read_seconds
        if self.stages is not None:
            found |= {"decode": self.stages.decode, "queue": self.stages.queue, "forward": self.stages.forward}
        if self.lookup_seconds is not None:
            found["lookup"] = self.lookup_seconds
        if (respond_seconds := self.respond_seconds) is not None:
            found["respond"] = respond_seconds
        return found

    def server_timing(self) -> str:
        """The Server-Timing header (W3C), durations in milliseconds."""
        parts = self.stage_seconds() | {"total": perf_counter() - self.started_at}
        return ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in parts.items())


def observe(scope: Scope, request: RequestRecord) -> None:
    """Keep `request` where `observed` finds it."""
    scope.setdefault("state", {})[_KEY] = request


def observed(scope: Scope) -> RequestRecord:
    """What the middleware knows of this request."""
    known: RequestRecord = scope["state"][_KEY]
    return known
