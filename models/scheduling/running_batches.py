"""The batches in flight: whether another may start alongside, since when the device is busy, and its pace.

The batcher starts and ends batches under its own lock; admission and metrics read the expected and running times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

# Weight of the latest batch in the moving average of the pace.
_PACE_WEIGHT = 0.2


@dataclass(slots=True, eq=False)
class RunningBatch:
    """One batch in flight. `began_at` is when it started to use the device, as far as known. `allows_overlap`: another
    batch of any size may start alongside."""

    began_at: float
    allows_overlap: bool


BatchT = TypeVar("BatchT", bound=RunningBatch)


class RunningBatches(Generic[BatchT]):
    """The batches in flight, in the order in which they began. Times are seconds of one monotonic clock.

    Not thread-safe, except `expected_seconds`. `overlap_min_size` is the smallest batch, if not a full one, alongside
    which a batch of any size may start; None: alongside no batch.
    """

    def __init__(self, *, full_size: int, overlap_min_size: int | None) -> None:
        self._full_size = full_size
        self._overlap_min_size = overlap_min_size
        self._running: list[BatchT] = []
        self._busy_until = 0.0
        # Moving averages over batches.
        self._average_seconds = 0.0
        self._average_items = 1.0

    def __iter__(self) -> Iterator[BatchT]:
        return iter(self._running)

    @property
    def may_start(self) -> bool:
        """Whether a batch of any size may start now. A full batch may always start."""
        return all(batch.allows_overlap for batch in self._running)

    def allows_overlap(self, size: int) -> bool:
        """Return whether another batch may start alongside a new batch of `size`.

        Not alongside a full batch: under that load the next batch will be full as well, and full batches are cheapest
        per image. A batch that itself starts alongside others always allows it.
        """
        if self._overlap_min_size is None or size == self._full_size:
            return False
        return size >= self._overlap_min_size or bool(self._running)

    def begin(self, batch: BatchT) -> None:
        self._running.append(batch)

    def end(self, batch: BatchT, ended_at: float) -> float:
        """Remove a batch that has ended. Returns the seconds the device was busy that no other batch has returned."""
        # The device is busy since the oldest running batch began. A batch removed by `clear` is not among them.
        known = batch in self._running
        busy_from = self._running[0].began_at if known else batch.began_at
        busy_seconds = ended_at - max(busy_from, self._busy_until)
        self._busy_until = ended_at
        if known:
            oldest = self._running[0] is batch
            self._running.remove(batch)
            # If the oldest batch had the device to itself, the next one starts to use it only now.
            if oldest and self._running and not batch.allows_overlap:
                self._running[0].began_at = ended_at
        return busy_seconds

    def clear(self) -> list[BatchT]:
        """Remove and return all batches."""
        removed, self._running = self._running, []
        return removed

    def running_seconds(self, now: float) -> float:
        """How long the oldest batch has run; 0 while there is none."""
        return now - self._running[0].began_at if self._running else 0.0

    def learn_pace(self, seconds: float, items: int) -> None:
        """Record that the device was busy for `seconds` with `items`."""
        if not self._average_seconds:
            self._average_seconds, self._average_items = seconds, items
        # Two averages instead of one of the ratio: of two batches that end together, the second adds almost no time.
        self._average_seconds += _PACE_WEIGHT * (seconds - self._average_seconds)
        self._average_items += _PACE_WEIGHT * (items - self._average_items)

    def expected_seconds(self, items: int) -> float:
        """How long the device needs for `items` at the pace of recent batches; 0 before the first batch."""
        return items * self._average_seconds / self._average_items
