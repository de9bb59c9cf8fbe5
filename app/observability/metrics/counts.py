"""Keep the counters and histograms of an HTTP worker in memory that the engine process reads.

Both processes map the same anonymous file. The engine process adds what has changed to its own metrics, at each scrape
and once more when the worker has ended: the counts of a killed worker are complete, and no counter falls.

prometheus_client's own multiprocess mode is no substitute: it has no exemplars and cannot remove the series of an
unloaded model.
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

# Room for about 500 models, unloaded ones included. Pages that were never written take no memory.
_MAX_VALUES = 1 << 17
_MAX_KEY_BYTES = _MAX_VALUES * 160

# An exemplar: value, Unix time, length of the request id, and the request id.
_EXEMPLAR = struct.Struct("<ddB128s")
_EXEMPLAR_BYTES = 160

_VALUES_AT = mmap.PAGESIZE
_EXEMPLARS_AT = _VALUES_AT + _MAX_VALUES * 8
_KEYS_AT = _EXEMPLARS_AT + _MAX_VALUES * _EXEMPLAR_BYTES
_TOTAL_BYTES = _KEYS_AT + _MAX_KEY_BYTES


class Key(NamedTuple):
    """Identifies a value: family, sample, and the values of the labels in their order, `le` last."""

    name: str
    sample: str
    labels: tuple[str, ...]


def create_counts() -> int:
    """Return the file descriptor of new memory for the counts of one process."""
    descriptor = os.memfd_create("counts")
    os.ftruncate(descriptor, _TOTAL_BYTES)
    return descriptor


class _Memory:
    def __init__(self, descriptor: int) -> None:
        self.bytes = mmap.mmap(descriptor, _TOTAL_BYTES)
        # The number of values, and of bytes that their keys take.
        self.used = np.frombuffer(self.bytes, np.uint64, 2)
        self.values = np.frombuffer(self.bytes, np.float64, _MAX_VALUES, _VALUES_AT)
        # Indexing a memoryview costs less than indexing an array.
        self.cells = memoryview(self.bytes)[_VALUES_AT:_EXEMPLARS_AT].cast("d")

    def exemplar(self, index: int) -> Exemplar | None:
        at = _EXEMPLARS_AT + index * _EXEMPLAR_BYTES
        read = bytes(self.bytes[at : at + _EXEMPLAR.size])
        value, timestamp, length, request_id = _EXEMPLAR.unpack(read)
        # Read twice: the other process may be writing it now.
        if not length or read != self.bytes[at : at + _EXEMPLAR.size]:
            return None
        return Exemplar({"request_id": request_id[:length].decode()}, value, timestamp)


def count_in(descriptor: int) -> None:
    """Make all counters and histograms that this process creates from now on count in that memory."""
    counts = _Counts(_Memory(descriptor))
    prometheus_client.values.ValueClass = counts.value


class _Counts:
    """The writing side."""

    def __init__(self, memory: _Memory) -> None:
        self._memory = memory
        self._indices: dict[Key, int] = {}
        self._lock = Lock()

    def value(
        self, kind: str, name: str, sample: str, names: Sequence[str], labels: Sequence[str], text: str, **more: Any
    ) -> Any:
        """Return a value in the shared memory, or one of this process alone for gauges and families without labels.

        Called by prometheus_client in place of its `ValueClass`.
        """
        unlabelled = not set(names) - {"le"}
        index = None if kind == "gauge" or unlabelled else self._index(Key(name, sample, tuple(labels)))
        if index is None:
            return MutexValue(kind, name, sample, names, labels, text, **more)  # type: ignore[no-untyped-call]
        return _SharedValue(self._memory, index)

    def _index(self, key: Key) -> int | None:
        """Return the index of the value; None if the memory is full, and then the value is not shared."""
        line = json.dumps(key).encode() + b"\n"
        with self._lock:
            if key in self._indices:
                return self._indices[key]
            index, end = map(int, self._memory.used)
            if index == _MAX_VALUES or end + len(line) > _MAX_KEY_BYTES:
                return None
            self._memory.bytes[_KEYS_AT + end : _KEYS_AT + end + len(line)] = line
            self._memory.used[1] = end + len(line)
            # Written last: the reader sees complete keys only.
            self._memory.used[0] = index + 1
            self._indices[key] = index
            return index


class _SharedValue:
    """One value, with the interface of prometheus_client's MutexValue."""

    _multiprocess = False

    def __init__(self, memory: _Memory, index: int) -> None:
        self._values = memory.cells
        self._memory = memory
        self._index = index
        self._lock = Lock()

    def inc(self, amount: float) -> None:
        with self._lock:
            self._values[self._index] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:  # noqa: ARG002 - MutexValue's signature
        with self._lock:
            self._values[self._index] = value

    def get(self) -> float:
        return self._values[self._index]

    def set_exemplar(self, exemplar: Exemplar) -> None:
        request_id = exemplar.labels["request_id"].encode()
        at = _EXEMPLARS_AT + self._index * _EXEMPLAR_BYTES
        with self._lock:
            packed = (exemplar.value, exemplar.timestamp or 0.0, len(request_id), request_id)
            _EXEMPLAR.pack_into(self._memory.bytes, at, *packed)

    def get_exemplar(self) -> Exemplar | None:
        return self._memory.exemplar(self._index)


class CountsReader:
    """The reading side, in another process."""

    def __init__(self, descriptor: int) -> None:
        self._memory = _Memory(descriptor)
        self._keys: list[Key] = []
        self._keys_end = _KEYS_AT
        self._read = np.zeros(0)

    def changes(self) -> Iterator[tuple[Key, float, Exemplar | None]]:
        """Yield (key, growth since the last call, exemplar) of each value that is new or has grown."""
        known = len(self._keys)
        self._read_keys()
        values = self._memory.values[: len(self._keys)].copy()
        self._read.resize(len(values), refcheck=False)
        grown = values - self._read
        self._read = values
        # New values that are still zero too, so that their series exist.
        indices = np.union1d(np.flatnonzero(grown), np.arange(known, len(values)))
        for index in map(int, indices):
            key = self._keys[index]
            exemplar = self._memory.exemplar(index) if key.sample.endswith("_bucket") else None
            yield key, float(grown[index]), exemplar

    def _read_keys(self) -> None:
        count, size = map(int, self._memory.used)
        while len(self._keys) < count:
            end = self._memory.bytes.find(b"\n", self._keys_end, _KEYS_AT + size)
            name, sample, labels = json.loads(self._memory.bytes[self._keys_end : end])
            self._keys.append(Key(name, sample, tuple(labels)))
            self._keys_end = end + 1
