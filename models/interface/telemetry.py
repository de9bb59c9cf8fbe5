"""What the inference side reports while it works, independent of the metrics format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gradless.records import Comparison

Task = Literal["classify", "features", "search"]
Stage = Literal["decode", "queue", "forward"]
Trigger = Literal["idle", "full", "wait", "drain"]
MemoryKind = Literal["allocated", "reserved", "peak", "free", "total"]
StaleMessage = Literal["answer", "submission"]
Outcome = Literal["ok", "bad_image", "refused", "late", "cancelled", "failed"]


class InstanceId(NamedTuple):
    """Names a model instance: one model on one device. Its reports have these two as labels."""

    model: str
    device: str


class StageSeconds(NamedTuple):
    """The seconds of one image in each stage. `decode` is from the request's admission, so it includes the wait for a
    decode thread; `queue` is from the end of the decode to the start of the forward."""

    decode: float
    queue: float
    forward: float


@dataclass(frozen=True, slots=True, weakref_slot=True)
class BatchReport:
    """One batch of a model instance: its number of items, what started it, when it started (`perf_counter`), and how
    long it ran.

    `dropped` is the number of items that were cancelled in the queue since the last batch. `busy_seconds` is the time
    the device was busy up to the end of this batch, without the time that earlier reports count.
    """

    instance: InstanceId
    size: int
    trigger: Trigger
    started_at: float
    forward_seconds: float
    busy_seconds: float
    dropped: int


@dataclass(frozen=True, slots=True)
class AdmissionState:
    """Images of a model that are admitted, in decode, queue or forward, and how many are admitted at most."""

    in_flight: int
    capacity: int


@dataclass(frozen=True, slots=True)
class InstanceState:
    """The batcher of a model instance: images in its queue, the age of the oldest, whether its threads run, how long
    the oldest running batch has taken (0 between batches), and the most images of a forward: less than the largest
    batch if the device had no memory for that."""

    depth: int
    oldest_age_seconds: float
    alive: bool
    running_seconds: float
    max_batch_size: int


@dataclass(frozen=True, slots=True)
class DeviceState:
    """Memory of a device in bytes, and the share of the last second or less in which it computed, 0..1, or None if that
    is unknown."""

    memory: Mapping[MemoryKind, int]
    utilization: float | None


class Telemetry:
    """Receives the reports, and ignores them: subclasses record what they are for. Any thread may call it: the event
    loop, batch threads and the supervisor do. Implementations are thread-safe and never raise."""

    def batch_ran(self, report: BatchReport) -> None:
        """A batch was answered."""

    def images_done(self, model: str, task: Task, outcome: Outcome, count: int = 1) -> None:
        """Count images by outcome. Each image of a request is counted once."""

    def image_took(self, instance: InstanceId, seconds: StageSeconds) -> None:
        """An image was answered by a batch of `instance`."""

    def image_cancelled(self, model: str, stage: Stage, saved_seconds: float) -> None:
        """An image was cancelled in `stage`, by a disconnect or the deadline. `saved_seconds` is the device time that
        it would have taken at the pace of recent batches; 0 if its forward had begun."""

    def out_of_memory(self, instance: InstanceId) -> None:
        """A forward failed because the device ran out of memory."""

    def batch_split(self, instance: InstanceId) -> None:
        """A batch that did not fit is run in two halves, as are all later batches of that size."""

    def model_replaced(self, model: str) -> None:
        """A model that had stopped working was restarted."""

    def model_served(self, model: str, devices: Sequence[str]) -> None:
        """A model or a new version of it was loaded on `devices`. Count its reports from now on."""

    def model_shown(self, model: str, devices: Sequence[str]) -> None:
        """The engine process has loaded a model, and counts the load. Count this process's reports from now on."""

    def model_not_loaded(self, model: str) -> None:
        """A model or a new version of it could not be loaded."""

    def model_gone(self, model: str) -> None:
        """A model was unloaded. Ignore later reports about it."""

    def message_dropped(self, message: StaleMessage) -> None:
        """A message between an HTTP worker and the engine process was dropped: its image is gone."""

    def compared(self, comparison: Comparison) -> None:
        """A comparison has ended."""
