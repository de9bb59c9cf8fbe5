"""Places in the building: an image has one from before its decode until its answer. Event loop only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from models.interface.errors import DrainingError, OverloadedError


def _nobody_elsewhere() -> int:
    return 0


def _told_to_nobody(_images: int) -> None:
    pass


class Admission:
    """Admits at most `capacity` images at once; `expected_seconds(n)` says how long n images take to be done.

    Where several processes share the places, `elsewhere` says how many the others have given away, and `tell` is told
    how many this one has. Two that ask at the same moment may both get the last place.
    """

    def __init__(
        self,
        capacity: int,
        expected_seconds: Callable[[int], float],
        *,
        elsewhere: Callable[[], int] = _nobody_elsewhere,
        tell: Callable[[int], None] = _told_to_nobody,
    ) -> None:
        self._capacity = capacity
        self._expected_seconds = expected_seconds
        self._elsewhere = elsewhere
        self._tell = tell
        self._in_flight = 0
        self._closed = False
        self._emptied: asyncio.Future[None] | None = None

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def full(self) -> bool:
        """Whether there is no place left."""
        return self._inside() >= self._capacity

    def overload(self, images: int) -> OverloadedError | None:
        """Why so many more would be refused now; None while there are places for them."""
        inside = self._inside()
        if inside + images <= self._capacity:
            return None
        return OverloadedError(self._capacity, self._expected_seconds(inside))

    def close(self) -> None:
        """Admit nobody from now on. Those inside keep their places."""
        self._closed = True

    async def emptied(self) -> None:
        """Admit nobody from now on, and return when the last of those inside has left."""
        self.close()
        if self._in_flight:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Places for all images of a request, or for none. Raises DrainingError, OverloadedError."""
        if self._closed:
            raise DrainingError
        overload = self.overload(images)
        if overload is not None:
            try:
                raise overload
            finally:
                # Its traceback has this frame: a ring would keep the request and its body until the garbage collector
                # comes, which in a full house takes time from all.
                del overload
        self._in_flight += images
        self._tell(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= images
            self._tell(self._in_flight)
            if not self._in_flight and self._emptied is not None and not self._emptied.done():
                self._emptied.set_result(None)

    def _inside(self) -> int:
        return self._in_flight + self._elsewhere()
