"""Admission of images to a model: an image is admitted before its decode and counts until it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from models.interface.admission import Budget
from models.interface.errors import DrainingError, OverloadedError


class Admission(Budget):
    """Admits at most `capacity` images at once. Event loop only. `expected_seconds(n)` predicts when n are answered.

    If several processes share the capacity, `admitted_elsewhere` returns how many images the others have admitted, and
    `on_change` receives the number that this one has. Two processes may both admit the last image.
    """

    def __init__(
        self,
        capacity: int,
        expected_seconds: Callable[[int], float],
        *,
        admitted_elsewhere: Callable[[], int] = lambda: 0,
        on_change: Callable[[int], None] = lambda _images: None,
    ) -> None:
        super().__init__(capacity, lambda used: OverloadedError(capacity, expected_seconds(int(used))))
        self._admitted_elsewhere = admitted_elsewhere
        self._on_change = on_change
        self._closed = False
        self._empty: asyncio.Future[None] | None = None

    @property
    def capacity(self) -> int:
        return int(self.limit)

    @property
    def in_flight(self) -> int:
        """Images that this process has admitted."""
        return int(self._held)

    @property
    def used(self) -> float:
        """Images that all processes have admitted."""
        return self._held + self._admitted_elsewhere()

    @property
    def full(self) -> bool:
        return self.used >= self.limit

    def close(self) -> None:
        """Admit nothing from now on. Admitted images keep their place."""
        self._closed = True

    async def wait_until_empty(self) -> None:
        """Admit nothing from now on, and return once every admitted image is answered."""
        self.close()
        if self._held:
            self._empty = asyncio.get_running_loop().create_future()
            await self._empty

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Admit all images of a request, or none. Raises DrainingError, OverloadedError."""
        if self._closed:
            raise DrainingError
        self.acquire(images)
        self._on_change(self.in_flight)
        try:
            yield
        finally:
            self.release(images)
            self._on_change(self.in_flight)
            if not self._held and self._empty is not None and not self._empty.done():
                self._empty.set_result(None)
