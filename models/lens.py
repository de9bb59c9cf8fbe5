"""Where comparisons run: one at a time, in a thread of their own, beside the serving they look at."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from models import devices
from models.comparison import Comparison, ComparisonOptions, Progress
from models.engine import Engine
from models.errors import ComparisonRunningError, DrainingError
from models.gradmodes import ComparisonAbandonedError, compare_served


class Lens:
    """The lens of a process. Event loop only, but for the thread that compares."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lens", initializer=_use_all_cores)
        self._comparing = False
        self._closing = threading.Event()

    async def compare(
        self,
        engine: Engine,
        options: ComparisonOptions,
        pixels: torch.Tensor | None,
        on_progress: Callable[[Progress], None],
    ) -> Comparison:
        """Cancelling it ends the comparison before its next forward. Raises ComparisonRunningError,
        ComparisonTooLargeError, and DrainingError when the lens is closed meanwhile."""
        if self._comparing:
            raise ComparisonRunningError
        self._comparing = True
        loop = asyncio.get_running_loop()
        abandoned = threading.Event()

        def tell(progress: Progress) -> None:
            loop.call_soon_threadsafe(on_progress, progress)

        running = self._thread.submit(
            compare_served,
            engine,
            options,
            image=pixels,
            abandoned=lambda: abandoned.is_set() or self._closing.is_set(),
            on_progress=tell,
        )
        # Not when the caller leaves, but when the thread is free again.
        running.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended))
        try:
            return await asyncio.wrap_future(running)
        except ComparisonAbandonedError:
            raise DrainingError from None
        finally:
            abandoned.set()

    def close(self) -> None:
        """End the comparison under way before its next forward. Does not wait for it."""
        self._closing.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _ended(self) -> None:
        self._comparing = False


def _use_all_cores() -> None:
    devices.use_cores_in_this_thread(devices.available_cores())
