"""The policy of every 429: what is refused for lack of capacity, and the value of Retry-After.

Three resources are limited: images admitted to a model (models/scheduling/admission.py), bytes of request bodies
(app/main.py), and seconds of expensive decodes (models/images/decode_pool.py).
Ray Serve's proxy answers 429 by itself (app/ray_serve/serve.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.interface.errors import AtCapacityError


def retry_after_s(expected_seconds: float) -> int:
    """Return the whole seconds, at least 1, after which a client may try again."""
    return max(1, math.ceil(expected_seconds))


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
