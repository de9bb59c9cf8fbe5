"""Fairness: a queue that takes turns between requests, and a lock that is given in order of arrival."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Entries with one fairness key stay in order; the keys take turns, one entry each, in order of arrival. If every
    key has one entry, the queue is first in, first out.

    Each entry has an id of its own, by which it can be removed. Every method except `firsts` takes constant time.
    """

    def __init__(self) -> None:
        # OrderedDicts, since they are linked lists: the first key of a plain dict is found by a scan of deleted slots.
        self._entries: OrderedDict[Hashable, OrderedDict[Hashable, T]] = OrderedDict()
        self._fairness_keys: dict[Hashable, Hashable] = {}

    def __len__(self) -> int:
        return len(self._fairness_keys)

    def append(self, entry_id: Hashable, entry: T, fairness_key: Hashable) -> None:
        """Add the last entry of `fairness_key`. `entry_id` must not be in the queue."""
        self._entries.setdefault(fairness_key, OrderedDict())[entry_id] = entry
        self._fairness_keys[entry_id] = fairness_key

    def popleft(self) -> T:
        """Remove and return the next entry. Raises IndexError if the queue is empty."""
        if not self._entries:
            raise IndexError("the queue is empty")
        fairness_key, entries = next(iter(self._entries.items()))
        entry_id, entry = entries.popitem(last=False)
        del self._fairness_keys[entry_id]
        if entries:
            self._entries.move_to_end(fairness_key)
        else:
            del self._entries[fairness_key]
        return entry

    def remove(self, entry_id: Hashable) -> bool:
        """Remove an entry. Returns False if it is not in the queue."""
        if entry_id not in self._fairness_keys:
            return False
        fairness_key = self._fairness_keys.pop(entry_id)
        entries = self._entries[fairness_key]
        del entries[entry_id]
        if not entries:
            del self._entries[fairness_key]
        return True

    def firsts(self) -> Iterator[T]:
        """The first entry of each fairness key. The oldest of all entries is among them."""
        return (next(iter(entries.values())) for entries in self._entries.values())


class FairLock:
    """Serves waiters in order of arrival. `with lock` is exclusive; `with lock.shared()` is held together with others.

    threading.Lock is not fair: a thread that releases and acquires it in a loop can keep others out.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next_ticket = 0
        self._serving = 0
        self._sharing = 0

    def __enter__(self) -> None:
        with self._changed:
            ticket = self._draw()
            self._changed.wait_for(lambda: self._serving == ticket and not self._sharing)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock together with others that share it. Waits for exclusive waiters that came before."""
        with self._changed:
            ticket = self._draw()
            self._changed.wait_for(lambda: self._serving == ticket)
            self._sharing += 1
            # The next waiter may share the lock at once. An exclusive one waits until nothing shares it.
            self._serving += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    def _draw(self) -> int:
        ticket = self._next_ticket
        self._next_ticket += 1
        return ticket
