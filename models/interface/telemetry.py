"""What the inference side reports while it works. Who listens, and in which format, is the listener's business."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from gradless.records import Comparison

Task = Literal["classify", "features", "search"]
Stage = Literal["decode", "queue", "forward"]
Trigger = Literal["idle", "full", "wait", "drain"]
MemoryKind = Literal["allocated", "reserved", "peak", "free", "total"]
StaleMessage = Literal["answer", "submission"]
Outcome = Literal["ok", "bad_image", "refused", "late", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Where one image's time went. `queue` is from decoded to the start of its forward."""

    decode: float
    queue: float
    forward: float


@dataclass(frozen=True, slots=True, weakref_slot=True)
class BatchReport:
    """One batch: how many items it ran, what let it go, when (`perf_counter`) and for how long it ran, and how many
    items had been given up before it. `busy_seconds`: how long a forward was under way up to its end, without what
    reports before it have counted."""

    model: str
    size: int
    trigger: Trigger
    started_at: float
    forward_seconds: float
    busy_seconds: float
    dropped: int


@dataclass(frozen=True, slots=True)
class QueueState:
    """What a model has before it: images waiting for a batch, the age of the oldest, all images in the building
    (in decode, queue or forward), and how many it admits."""

    depth: int
    oldest_age_seconds: float
    in_flight: int
    capacity: int


@dataclass(frozen=True, slots=True)
class BatcherState:
    """Whether the threads that run a model's batches live, how long the batch under way has been running (0 between
    batches), and how many images a forward may have: fewer than a batch where the device had no memory for that."""

    alive: bool
    running_seconds: float
    max_batch_size: int


class Telemetry(Protocol):
    """Called from the event loop and from batcher threads: implementations are thread-safe and never raise."""

    def batch_ran(self, report: BatchReport) -> None: ...

    def images_done(self, model: str, task: Task, outcome: Outcome, count: int = 1) -> None:
        """Each image that was sent is counted here once, whatever became of it."""

    def image_took(self, model: str, seconds: StageSeconds) -> None: ...

    def image_cancelled(self, model: str, stage: Stage, saved_seconds: float) -> None:
        """An image was given up, by its caller or its deadline, while in `stage`. `saved_seconds`: what the device
        would have needed for it, at the pace of recent batches; 0 where its forward had begun."""

    def out_of_memory(self, model: str) -> None:
        """A forward failed because the device had no memory for it."""

    def batch_split(self, model: str) -> None:
        """What did not fit is tried again in two halves, as all later batches of that size."""

    def model_replaced(self, model: str) -> None:
        """A model that had stopped working has been started anew."""

    def model_served(self, model: str) -> None:
        """A model, or a new version of it, has been loaded: what is told of it from now on is to be counted."""

    def model_shown(self, model: str) -> None:
        """Another process has loaded it and counts that; what is told of it here from now on is to be counted."""

    def model_not_loaded(self, model: str) -> None:
        """It, or a new version of it, could not be loaded."""

    def model_gone(self, model: str) -> None:
        """It is served no more, under any version: what is still told of it is for nobody."""

    def message_dropped(self, message: StaleMessage) -> None:
        """A message between an HTTP process and the engine process was about an image that is not there any more."""

    def compared(self, comparison: Comparison) -> None: ...


class Unheard:
    """The telemetry of a notebook: nobody listens."""

    def batch_ran(self, report: BatchReport) -> None:
        pass

    def images_done(self, model: str, task: Task, outcome: Outcome, count: int = 1) -> None:
        pass

    def image_took(self, model: str, seconds: StageSeconds) -> None:
        pass

    def image_cancelled(self, model: str, stage: Stage, saved_seconds: float) -> None:
        pass

    def compared(self, comparison: Comparison) -> None:
        pass

    def out_of_memory(self, model: str) -> None:
        pass

    def batch_split(self, model: str) -> None:
        pass

    def model_replaced(self, model: str) -> None:
        pass

    def model_served(self, model: str) -> None:
        pass

    def model_shown(self, model: str) -> None:
        pass

    def model_not_loaded(self, model: str) -> None:
        pass

    def model_gone(self, model: str) -> None:
        pass

    def message_dropped(self, message: StaleMessage) -> None:
        pass
