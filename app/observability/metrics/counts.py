"""Counters and histograms of one process in memory that outlives it and that another process reads.

What an HTTP worker counts is in a file without a name, which it and the engine process have mapped. The engine process
adds what has changed to its own metrics, whenever they are asked for and once more when the worker has ended: a worker
that is killed takes nothing along that it had counted, and no counter falls.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import prometheus_client.values
from prometheus_client.samples import Exemplar
from prometheus_client.values import MutexValue

# So many values fit: those of a process with some 500 models, under whatever names they were loaded. Memory that has
# not been written to takes none.
_MOST_VALUES = 1 << 17
_MOST_KEY_BYTES = _MOST_VALUES * 160

# An exemplar: the value, when it was, and its request's id.
_EXEMPLAR = struct.Struct("<ddB128s")
_EXEMPLAR_BYTES = 160

_PAGE = mmap.PAGESIZE
_VALUES_AT = _PAGE
_EXEMPLARS_AT = _VALUES_AT + _MOST_VALUES * 8
_KEYS_AT = _EXEMPLARS_AT + _MOST_VALUES * _EXEMPLAR_BYTES
_TOTAL_BYTES = _KEYS_AT + _MOST_KEY_BYTES


class Key(NamedTuple):
    """Which value it is: of the family `name`, the sample `sample` with these values of its labels, le the last."""

    name: str
    sample: str
    labels: tuple[str, ...]


def create_counts() -> int:
    """The file descriptor of memory for what one process counts."""
    descriptor = os.memfd_create("counts")
    os.ftruncate(descriptor, _TOTAL_BYTES)
    return descriptor


class _Memory:
    def __init__(self, descriptor: int) -> None:
        self.bytes = mmap.mmap(descriptor, _TOTAL_BYTES)
        # How many values there are, and how many bytes their keys take.
        self.used = np.frombuffer(self.bytes, np.uint64, 2)
        self.values = np.frombuffer(self.bytes, np.float64, _MOST_VALUES, _VALUES_AT)


def count_in(descriptor: int) -> None:
    """Have all counters and histograms that this process makes from now on count in that memory."""
    counts = _Counts(_Memory(descriptor))
    prometheus_client.values.ValueClass = counts.value


class _Counts:
    """The side that counts."""

    def __init__(self, memory: _Memory) -> None:
        self._memory = memory
        # Indexing it costs less than indexing an array.
        self._values = memoryview(memory.bytes)[_VALUES_AT:_EXEMPLARS_AT].cast("d")
        self._indices: dict[Key, int] = {}
        self._lock = Lock()

    def value(
        self, kind: str, name: str, sample: str, names: Sequence[str], labels: Sequence[str], text: str, **more: Any
    ) -> Any:
        """A value in the memory; one of this process alone where no series of the service is meant."""
        of_no_series = not set(names) - {"le"}
        index = None if kind == "gauge" or of_no_series else self._index(Key(name, sample, tuple(labels)))
        if index is None:
            return MutexValue(kind, name, sample, names, labels, text, **more)  # type: ignore[no-untyped-call]
        return _SharedValue(self._values, self._memory.bytes, index)

    def _index(self, key: Key) -> int | None:
        """Where it is; None where there is no room, and the value will be missing from the service's."""
        line = json.dumps(key).encode() + b"\n"
        with self._lock:
            if key in self._indices:
                return self._indices[key]
            index, end = map(int, self._memory.used)
            if index == _MOST_VALUES or end + len(line) > _MOST_KEY_BYTES:
                return None
            self._memory.bytes[_KEYS_AT + end : _KEYS_AT + end + len(line)] = line
            self._memory.used[1] = end + len(line)
            # Last: then the reader has all of it.
            self._memory.used[0] = index + 1
            self._indices[key] = index
            return index


class _SharedValue:
    """One value, as prometheus_client's MutexValue."""

    _multiprocess = False

    def __init__(self, values: memoryview[float], memory: mmap.mmap, index: int) -> None:
        self._values = values
        self._memory = memory
        self._index = index
        self._lock = Lock()

    def inc(self, amount: float) -> None:
        with self._lock:
            self._values[self._index] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:  # noqa: ARG002 - as MutexValue has it
        with self._lock:
            self._values[self._index] = value

    def get(self) -> float:
        return self._values[self._index]

    def set_exemplar(self, exemplar: Exemplar) -> None:
        request_id = exemplar.labels["request_id"].encode()
        at = _EXEMPLARS_AT + self._index * _EXEMPLAR_BYTES
        with self._lock:
            _EXEMPLAR.pack_into(
                self._memory, at, exemplar.value, exemplar.timestamp or 0.0, len(request_id), request_id
            )

    def get_exemplar(self) -> Exemplar | None:
        return _exemplar(self._memory, self._index)


class CountsReader:
    """What another process counts in that memory."""

    def __init__(self, descriptor: int) -> None:
        self._memory = _Memory(descriptor)
        self._keys: list[Key] = []
        self._keys_end = _KEYS_AT
        self._read = np.zeros(0)

    def changes(self) -> Iterator[tuple[Key, float, Exemplar | None]]:
        """By how much each value has grown since this was called before, those that are new included."""
        known = len(self._keys)
        self._read_keys()
        values = self._memory.values[: len(self._keys)].copy()
        self._read.resize(len(values), refcheck=False)
        grown = values - self._read
        self._read = values
        # New ones at zero as well: their series are to be there.
        indices = np.union1d(np.flatnonzero(grown), np.arange(known, len(values)))
        for index in map(int, indices):
            key = self._keys[index]
            exemplar = _exemplar(self._memory.bytes, index) if key.sample.endswith("_bucket") else None
            yield key, float(grown[index]), exemplar

    def _read_keys(self) -> None:
        count, size = map(int, self._memory.used)
        while len(self._keys) < count:
            end = self._memory.bytes.find(b"\n", self._keys_end, _KEYS_AT + size)
            name, sample, labels = json.loads(self._memory.bytes[self._keys_end : end])
            self._keys.append(Key(name, sample, tuple(labels)))
            self._keys_end = end + 1


def _exemplar(memory: mmap.mmap, index: int) -> Exemplar | None:
    at = _EXEMPLARS_AT + index * _EXEMPLAR_BYTES
    read = bytes(memory[at : at + _EXEMPLAR.size])
    value, timestamp, length, request_id = _EXEMPLAR.unpack(read)
    # The other process may be writing it just now.
    if not length or read != memory[at : at + _EXEMPLAR.size]:
        return None
    return Exemplar({"request_id": request_id[:length].decode()}, value, timestamp)
