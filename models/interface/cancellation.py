"""Cancel tokens: how work learns that its client no longer waits for the result.

One token goes from the client's connection through decode and queue to the pieces of a forward.
"""

from __future__ import annotations

from collections.abc import Collection


class AllCancelledError(Exception):
    """A forward was stopped because every request in its batch was cancelled. No client receives this error."""


class CancelToken:
    """Say whether some work was cancelled. A token that was cancelled stays so.

    Any thread may read `cancelled` and call `cancel`. Neither takes a lock: decode and forward threads poll the token.
    A token is also cancelled once its `parent` is.
    """

    __slots__ = ("_cancelled", "_parent")

    def __init__(self, parent: CancelToken | None = None) -> None:
        self._cancelled = False
        self._parent = parent

    @property
    def cancelled(self) -> bool:
        return self._cancelled or (self._parent is not None and self._parent.cancelled)

    def cancel(self) -> None:
        self._cancelled = True

    def raise_if_cancelled(self) -> None:
        """Raise AllCancelledError if the token is cancelled."""
        if self.cancelled:
            raise AllCancelledError


class NeverCancelled(CancelToken):
    """The token of work without a client, such as a warm-up. `cancel` has no effect."""

    __slots__ = ()

    @property
    def cancelled(self) -> bool:
        return False

    def cancel(self) -> None:
        pass


class AllCancelled(CancelToken):
    """The token of a batch: cancelled once each of `tokens` is."""

    __slots__ = ("_tokens",)

    def __init__(self, tokens: Collection[CancelToken]) -> None:
        super().__init__()
        self._tokens = tokens

    @property
    def cancelled(self) -> bool:
        return self._cancelled or all(token.cancelled for token in self._tokens)


NEVER_CANCELLED = NeverCancelled()
