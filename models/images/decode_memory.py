"""A memory budget for expensive decodes, shared by all processes of a service.

The budget is an anonymous file of units. A decode locks as many units as it needs; the kernel unlocks them when the
process ends, however it ends. These are open file description locks, see fcntl(2).
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep

from models.interface.request import CancelToken

# Number of units, and position of the lock that lets one decode at a time search for free units.
_UNITS = 64
_QUEUE = _UNITS
_LOOK_AGAIN_S = 0.01


class DecodeMemory:
    """A limit of `limit_bytes` for all decodes that hold memory at the same time. A process that gets
    `descriptor` from another has the same budget. On systems other than Linux, one decode at a time holds memory."""

    def __init__(self, limit_bytes: int, descriptor: int | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._one_at_a_time = threading.Lock()
        if descriptor is None and sys.platform == "linux":
            descriptor = os.memfd_create("decode-memory")
        self._descriptor = descriptor

    @contextmanager
    def reserved(self, count: int, cancel_token: CancelToken) -> Iterator[bool]:
        """Wait for `count` bytes, or the whole budget if that is less, first come, first served, and hold them. Yields
        False, and reserves nothing, once the token is cancelled."""
        if self._descriptor is None:
            with self._one_at_a_time:
                yield not cancel_token.cancelled
            return
        units = min(_UNITS, -(-count * _UNITS // self._limit_bytes))
        # Locks belong to an open file, so each reservation opens its own; closing it releases the locks.
        own = os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDWR)
        try:
            yield self._lock(own, units, cancel_token)
        finally:
            os.close(own)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self, own: int, units: int, cancel_token: CancelToken) -> bool:
        fcntl.fcntl(own, fcntl.F_OFD_SETLKW, _lock_of(fcntl.F_WRLCK, _QUEUE, 1))
        try:
            while not cancel_token.cancelled:
                if any(_try_to_lock(own, first, units) for first in range(_UNITS - units + 1)):
                    return True
                sleep(_LOOK_AGAIN_S)
            return False
        finally:
            fcntl.fcntl(own, fcntl.F_OFD_SETLK, _lock_of(fcntl.F_UNLCK, _QUEUE, 1))


def _try_to_lock(descriptor: int, first: int, units: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _lock_of(fcntl.F_WRLCK, first, units))
    except BlockingIOError:
        return False
    return True


def _lock_of(kind: int, first: int, units: int) -> bytes:
    """struct flock of fcntl(2): type, whence, start, length, pid."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, first, units, 0)
