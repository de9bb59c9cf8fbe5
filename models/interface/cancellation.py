"""A forward that nobody waits for any more is stopped where it can be, so that nobody who comes next waits for it."""

from __future__ import annotations

from collections.abc import Callable

# Whether somebody still waits. Asked from any thread, and often: at each piece of a batch.
Wanted = Callable[[], bool]


class AllCancelledError(Exception):
    """Work was given up in its middle: its callers have all left. None of them hears of it."""


def always() -> bool:
    """Of work whose caller does not leave."""
    return True


def check(wanted: Wanted) -> None:
    """Raises AllCancelledError unless `wanted`."""
    if not wanted():
        raise AllCancelledError
