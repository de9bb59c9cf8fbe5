"""Where comparisons run: one at a time, in a thread of their own, beside the serving they look at."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from gradless import ComparisonAbandonedError, compare_served
from gradless.records import Comparison, ComparisonOptions, Progress
from models.hardware import cores
from models.inference.engine import Engine
from models.interface.cancellation import CancelToken
from models.interface.errors import ComparisonRunningError, DrainingError


@dataclass(eq=False, slots=True)
class _UnderWay:
    """A comparison. `told` is what its caller waits for, `over` what its thread does."""

    engine: Engine
    loop: asyncio.AbstractEventLoop
    told: asyncio.Future[Comparison]
    cancel_token: CancelToken = field(default_factory=CancelToken)
    over: threading.Event = field(default_factory=threading.Event)

    def fail(self, error: Exception) -> None:
        """Have the caller hear `error` now, and the thread end before its next forward. From any thread."""
        self.cancel_token.cancel()
        self.loop.call_soon_threadsafe(self._tell, error)

    def _tell(self, error: Exception) -> None:
        if not self.told.done():
            self.told.set_exception(error)


class Lens:
    """The lens of a process. Event loop only, but for the thread that compares, and where it says otherwise."""

    def __init__(self) -> None:
        self._thread = _new_thread()
        self._under_way: _UnderWay | None = None

    async def compare(
        self,
        engine: Engine,
        options: ComparisonOptions,
        pixels: torch.Tensor | None,
        on_progress: Callable[[Progress], None],
    ) -> Comparison:
        """Cancelling it ends the comparison before its next forward. Raises ComparisonRunningError,
        ComparisonTooLargeError, DrainingError when the lens is closed meanwhile, and what `leave` is given."""
        if self._under_way is not None:
            raise ComparisonRunningError
        loop = asyncio.get_running_loop()
        this = self._under_way = _UnderWay(engine, loop, loop.create_future())

        def tell(progress: Progress) -> None:
            loop.call_soon_threadsafe(on_progress, progress)

        try:
            running = self._thread.submit(
                compare_served,
                engine,
                options,
                image=pixels,
                abandoned=lambda: this.cancel_token.cancelled,
                on_progress=tell,
            )
        except BaseException:
            # There is no thread for it. What waits in the executor all the same ends as soon as it begins.
            this.cancel_token.cancel()
            self._under_way = None
            raise
        # Not when the caller leaves, but when the thread is free again.
        running.add_done_callback(lambda _: this.over.set())
        running.add_done_callback(lambda done: loop.call_soon_threadsafe(self._ended, this, done))
        try:
            return await this.told
        finally:
            this.cancel_token.cancel()

    def leave(self, engine: Engine, error: Exception) -> threading.Event | None:
        """End the comparison of `engine`, if that is the one under way: its caller hears `error` at once. What is given
        back is set when its last forward is over. From any thread."""
        this = self._under_way
        if this is None or this.engine is not engine:
            return None
        this.fail(error)
        return this.over

    def leave_hanging(self, engine: Engine, error: Exception) -> None:
        """As `leave`, but for an engine whose forward will not end: the next comparison has another thread. From any
        thread."""
        if self.leave(engine, error) is None:
            return
        hanging, self._thread = self._thread, _new_thread()
        self._under_way = None
        hanging.shutdown(wait=False)

    def close(self) -> None:
        """End the comparison under way before its next forward. Does not wait for it. From any thread."""
        this = self._under_way
        if this is not None:
            this.cancel_token.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _ended(self, this: _UnderWay, done: Future[Comparison]) -> None:
        if self._under_way is this:
            self._under_way = None
        if this.told.done():
            return
        if done.cancelled() or isinstance(done.exception(), ComparisonAbandonedError):
            this.told.set_exception(DrainingError())
        elif (error := done.exception()) is not None:
            this.told.set_exception(error)
        else:
            this.told.set_result(done.result())


def _new_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="lens", initializer=_use_all_cores)


def _use_all_cores() -> None:
    cores.use_cores_in_this_thread(cores.available_cores())
