"""Work on bodies and answers whose time grows with their size."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Bytes that base64, zlib and JSON handle in about a millisecond.
_MAX_ON_LOOP = 256 * 1024


async def off_loop(size_bytes: int, work: Callable[[], T]) -> T:
    """Return the result of `work`, which handles `size_bytes`: here if that is little, else in a thread.

    C code that does not release the interpreter lock stops the event loop from a thread as well, so `work` handles
    large inputs in pieces.
    """
    return work() if size_bytes <= _MAX_ON_LOOP else await asyncio.to_thread(work)
