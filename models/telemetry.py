"""What the inference side reports while it works. Who listens, and in which format, is the listener's business."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from models.comparison import Comparison

Task = Literal["classify", "features"]
Stage = Literal["decode", "queue", "forward"]
Trigger = Literal["idle", "full", "wait", "drain"]
MemoryKind = Literal["allocated", "reserved", "peak", "free", "total"]
Outcome = Literal["ok", "bad_image", "refused", "late", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Where one image's time went. `queue` is from decoded to the start of its forward."""

    decode: float
    queue: float
    forward: float


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One batch: how many items it ran, what let it go, and how many had been given up before it."""

    model: str
    size: int
    trigger: Trigger
    forward_seconds: float
    dropped: int


@dataclass(frozen=True, slots=True)
class QueueState:
    """What a model has before it: images waiting for a batch, the age of the oldest, and all images in the
    building (in decode, queue or forward)."""

    depth: int
    oldest_age_seconds: float
    in_flight: int


class Telemetry(Protocol):
    """Called from the event loop and from batcher threads: implementations are thread-safe and never raise."""

    def batch_ran(self, report: BatchReport) -> None: ...

    def images_done(self, model: str, task: Task, outcome: Outcome, count: int = 1) -> None:
        """Each image that was sent is counted here once, whatever became of it."""

    def image_took(self, model: str, seconds: StageSeconds) -> None: ...

    def image_cancelled(self, model: str, stage: Stage) -> None:
        """An image was given up, by its caller or its deadline, while in `stage`."""

    def compared(self, comparison: Comparison) -> None: ...


class Unheard:
    """The telemetry of a notebook: nobody listens."""

    def batch_ran(self, report: BatchReport) -> None:
        pass

    def images_done(self, model: str, task: Task, outcome: Outcome, count: int = 1) -> None:
        pass

    def image_took(self, model: str, seconds: StageSeconds) -> None:
        pass

    def image_cancelled(self, model: str, stage: Stage) -> None:
        pass

    def compared(self, comparison: Comparison) -> None:
        pass
