"""A queue in which nobody's many items keep out somebody's one. Not thread-safe: the batcher holds its own lock."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Callers take turns in order of arrival, one entry a turn; each caller's own entries stay in order. Among
    callers of one entry each that is first in, first out."""

    def __init__(self) -> None:
        self._by_caller: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, entry: T, caller: Hashable) -> None:
        self._by_caller.setdefault(caller, deque()).append(entry)
        self._length += 1

    def popleft(self) -> T:
        """The next entry. Raises IndexError when there is none."""
        if not self._by_caller:
            raise IndexError("the queue is empty")
        caller, entries = next(iter(self._by_caller.items()))
        entry = entries.popleft()
        self._length -= 1
        if entries:
            self._by_caller.move_to_end(caller)
        else:
            del self._by_caller[caller]
        return entry

    def firsts(self) -> Iterator[T]:
        """Each caller's first entry: the oldest of all is among them."""
        return (entries[0] for entries in self._by_caller.values())
