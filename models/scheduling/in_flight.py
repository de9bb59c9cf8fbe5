"""What is on the device: whether it leaves room for more, since when the device is busy, and the pace learned from
that. Between batching.py, which begins and ends batches under its own lock, and whoever asks how long something takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

# How much the latest batch counts in the moving average of the pace.
_PACE_WEIGHT = 0.2


@dataclass(slots=True, eq=False)
class RunningBatch:
    """One batch's time on the device. `began_at`: when there was a place for it, as far as is known. `leaves_room`:
    others may be begun beside it."""

    began_at: float
    leaves_room: bool


StayT = TypeVar("StayT", bound=RunningBatch)


class InFlight(Generic[StayT]):
    """The batches under way, in the order in which they were begun. Not for several threads at a time: whoever calls
    holds a lock, but for `expected_seconds`. Times are seconds of one monotonic clock.

    `room_from`: a batch of as many items, but not a full one, leaves room for others of any size; None: no batch does.
    """

    def __init__(self, *, full_size: int, room_from: int | None) -> None:
        self._full_size = full_size
        self._room_from = room_from
        self._under_way: list[StayT] = []
        self._busy_until = 0.0
        # Of a batch, in the moving average.
        self._usual_seconds = 0.0
        self._usual_items = 1.0

    def __contains__(self, stay: StayT) -> bool:
        return stay in self._under_way

    @property
    def has_room(self) -> bool:
        """Whether a batch of any size may be begun; for a full one there always is a place."""
        return all(stay.leaves_room for stay in self._under_way)

    def would_leave_room(self, size: int) -> bool:
        """Whether a batch that begins now does: not one that is full, for so will be the next, and images in full
        batches cost the least. One beside others has not got the device for itself, be it as small as it may."""
        if self._room_from is None or size == self._full_size:
            return False
        return size >= self._room_from or bool(self._under_way)

    def begin(self, stay: StayT) -> None:
        self._under_way.append(stay)

    def end(self, stay: StayT, ended_at: float) -> float:
        """The device has done it. Returns for how many seconds it was busy with it that no other batch was told of."""
        # It has been busy from the first of those under way on; one given up by `clear` is no longer among them.
        known = stay in self._under_way
        busy_from = self._under_way[0].began_at if known else stay.began_at
        busy_seconds = ended_at - max(busy_from, self._busy_until)
        self._busy_until = ended_at
        if known:
            oldest = self._under_way[0] is stay
            self._under_way.remove(stay)
            # If that was the oldest and had the device for itself, only now has it come to the next.
            if oldest and self._under_way and not stay.leaves_room:
                self._under_way[0].began_at = ended_at
        return busy_seconds

    def clear(self) -> list[StayT]:
        """Those under way, which from now on are nobody's."""
        given_up, self._under_way = self._under_way, []
        return given_up

    def running_seconds(self, now: float) -> float:
        """For how long the oldest of those under way has been; 0 while there is none."""
        return now - self._under_way[0].began_at if self._under_way else 0.0

    def learn_pace(self, seconds: float, items: int) -> None:
        """The device was busy for so many seconds with so many items."""
        if not self._usual_seconds:
            self._usual_seconds, self._usual_items = seconds, items
        # Apart from one another: of two that end together the second is told of next to no time.
        self._usual_seconds += _PACE_WEIGHT * (seconds - self._usual_seconds)
        self._usual_items += _PACE_WEIGHT * (items - self._usual_items)

    def expected_seconds(self, items: int) -> float:
        """How long the device needs for that many items, from the pace of recent batches; 0 before the first."""
        return items * self._usual_seconds / self._usual_items
