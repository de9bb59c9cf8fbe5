"""Admission: which amounts a limited resource has room for. What is refused is answered with 429 and Retry-After.

Limited are images admitted to a model, from before their decode until they are answered (Admission), bytes of request
bodies (app/main.py), seconds of expensive decodes (models/images/decode_pool.py), and calls and slow messages of gRPC
(app/api/contracts/grpc_limits.py).
Ray Serve's proxy answers 429 by itself (app/ray_serve/serve.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from models.interface.errors import AtCapacityError, DrainingError, OverloadedError


class Budget:
    """Admit amounts until `limit` is in use. `refusal(used)` makes the error. Not thread-safe.

    With `overshoot`, any amount is admitted while not more than the limit is in use: then no amount is too large.
    """

    def __init__(self, limit: float, refusal: Callable[[float], AtCapacityError], *, overshoot: bool = False) -> None:
        self.limit = limit
        self._overshoot = overshoot
        self._refusal = refusal
        self._held = 0.0

    @property
    def used(self) -> float:
        return self._held

    def overload(self, amount: float) -> AtCapacityError | None:
        """Return why `amount` more would be refused now; None if it would be admitted."""
        used = self.used
        admitted = used if self._overshoot else used + amount
        return None if admitted <= self.limit else self._refusal(used)

    def acquire(self, amount: float) -> None:
        """Raises the refusal if `amount` more exceeds the limit."""
        overload = self.overload(amount)
        if overload is not None:
            try:
                raise overload
            finally:
                # The traceback refers to this frame: a cycle would keep the request and its body.
                del overload
        self._held += amount

    def release(self, amount: float) -> None:
        self._held -= amount


class Admission(Budget):
    """Admits at most `capacity` images at once. Event loop only. `expected_seconds(n)` predicts the
    seconds until n are answered: of their forwards alone, and 0 before the first batch.

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
        self._announced = 0
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
        return self._held + self._admitted_elsewhere()

    @property
    def half_full(self) -> bool:
        return self.used >= self.limit / 2

    def announce(self) -> AtCapacityError | None:
        """Return why one more image would be refused; else announce it, because its request's head has arrived.

        Announced images count here, not in `admit`, until the event loop's next iteration, which reads and admits the
        requests whose heads it has parsed in this one.
        """
        overload = self.overload(1 + self._announced)
        if overload is None:
            if not self._announced:
                asyncio.get_running_loop().call_soon(self._forget_announced)
            self._announced += 1
        return overload

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
        """Admit all images of a request, or none. Raises DrainingError, AtCapacityError."""
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

    def _forget_announced(self) -> None:
        self._announced = 0
