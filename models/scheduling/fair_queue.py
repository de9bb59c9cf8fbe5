"""A queue that takes turns between requests. Not thread-safe: the batcher holds its own lock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
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
