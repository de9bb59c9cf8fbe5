"""A queue in which a client with many entries cannot keep out a client with one. Not thread-safe: the batcher holds its
own lock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Callers take turns in order of arrival, one entry a turn; each caller's own entries stay in order. Among
    callers of one entry each that is first in, first out.

    Each entry is queued under a key of its own, by which it can be removed. Every method but `firsts` takes constant
    time, however many entries wait.
    """

    def __init__(self) -> None:
        # Linked lists: taking the first of a plain dict looks at each place that was emptied before it.
        self._by_caller: OrderedDict[Hashable, OrderedDict[Hashable, T]] = OrderedDict()
        self._caller_of: dict[Hashable, Hashable] = {}

    def __len__(self) -> int:
        return len(self._caller_of)

    def append(self, key: Hashable, entry: T, caller: Hashable) -> None:
        """Add the last entry of `caller`. `key` must not be in the queue."""
        self._by_caller.setdefault(caller, OrderedDict())[key] = entry
        self._caller_of[key] = caller

    def popleft(self) -> T:
        """The next entry. Raises IndexError when there is none."""
        if not self._by_caller:
            raise IndexError("the queue is empty")
        caller, entries = next(iter(self._by_caller.items()))
        key, entry = entries.popitem(last=False)
        del self._caller_of[key]
        if entries:
            self._by_caller.move_to_end(caller)
        else:
            del self._by_caller[caller]
        return entry

    def remove(self, key: Hashable) -> bool:
        """Remove an entry. False if it is not, or no longer, in the queue."""
        if key not in self._caller_of:
            return False
        caller = self._caller_of.pop(key)
        entries = self._by_caller[caller]
        del entries[key]
        if not entries:
            del self._by_caller[caller]
        return True

    def firsts(self) -> Iterator[T]:
        """Each caller's first entry: the oldest of all is among them."""
        return (next(iter(entries.values())) for entries in self._by_caller.values())
