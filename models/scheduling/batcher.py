"""Batch formation, between the pipeline, which submits single items, and the engine, which runs batches.

Work-conserving: an idle device takes the queued items at once, even a single one; items that arrive while it is busy
form the next batch. Fair: fairness keys take turns. The batches run in threads of the batcher, so a busy event loop
never delays one.

With `max_concurrent_batches` 2, a full batch starts while another runs: waiting would not enlarge it, and the device
finds its next work ready when it ends the current batch. A batch that is not full waits for the device, unless the
running batches allow an overlap: on CPUs where each core runs its own images, a core that is done need not wait for the
others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, NamedTuple, TypeVar

from models.interface.errors import DrainingError, ForwardError, OverloadedError
from models.interface.request import AllCancelledError
from models.interface.telemetry import BatchReport, InstanceId, Trigger
from models.scheduling.fairness import FairQueue
from models.scheduling.running_batches import RunningBatch, RunningBatches

_log = logging.getLogger(__name__)

# Seconds to wait for the threads if one cannot be prepared; one that still prepares by then is left behind.
_CLOSE_TIMEOUT_S = 1.0

Item = TypeVar("Item")
Result = TypeVar("Result")


class Completed(NamedTuple, Generic[Result]):
    """One item's result, the seconds it spent in the queue, and its batch."""

    result: Result
    queue_seconds: float
    batch: BatchReport


class _Entry(NamedTuple, Generic[Item, Result]):
    item: Item
    future: Future[Completed[Result]]
    enqueued_at: float


@dataclass(slots=True, eq=False)
class _Batch(RunningBatch, Generic[Item, Result]):
    entries: list[_Entry[Item, Result]]
    trigger: Trigger
    dropped: int
    cancelled: list[Future[Completed[Result]]]


class Batcher(Generic[Item, Result]):
    """Forms batches of single items for `run_batch`. The constructor returns once all threads are prepared.

    `run_batch` receives 1 to `max_batch_size` items and returns one result per item, in order; an exception for an item
    that failed alone. It raises AllCancelledError if it stopped because every item was cancelled. Items are in order of
    arrival, except that fairness keys take turns.

    name, device: the model and where `run_batch` runs it, for the reports.
    max_batch_delay_s: longest delay of the oldest item while its batch fills; 0 never delays.
    queue_capacity: items in the queue, at most.
    max_concurrent_batches: batches that run concurrently, each in its own thread.
    overlap_min_size: smallest batch, if not a full one, alongside which a batch of any size may start; None: none.
    fairness_key: returns the key of an item; by default every item has its own.
    prepare: runs first in each thread, one after another. The constructor raises what it raises.
    on_batch: receives the report of each batch in its thread, after its items are answered.
    """

    def __init__(
        self,
        run_batch: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        *,
        name: str,
        device: str = "",
        max_batch_size: int = 32,
        max_batch_delay_s: float = 0.0,
        queue_capacity: int = 256,
        max_concurrent_batches: int = 1,
        overlap_min_size: int | None = None,
        fairness_key: Callable[[Item], Hashable] = lambda _item: object(),
        prepare: Callable[[], None] = lambda: None,
        on_batch: Callable[[BatchReport], None] = lambda _report: None,
    ) -> None:
        self._run_batch = run_batch
        self._instance = InstanceId(name, device)
        self._max_batch_size = max_batch_size
        self._max_wait_s = max_batch_delay_s
        self._queue_capacity = queue_capacity
        self._fairness_key = fairness_key
        self._on_batch = on_batch
        self._queue: FairQueue[_Entry[Item, Result]] = FairQueue()
        self._changed = threading.Condition()
        self._closed = False
        self._refusal: Callable[[], Exception] = DrainingError
        # One thread at a time forms a batch, which may take `max_batch_delay_s`.
        self._forming = False
        # Items whose clients have disconnected since the last batch was formed.
        self._dropped = 0
        self._running: RunningBatches[_Batch[Item, Result]] = RunningBatches(
            full_size=max_batch_size, overlap_min_size=overlap_min_size
        )
        self._threads: list[threading.Thread] = []
        try:
            for _ in range(max_concurrent_batches):
                self._start_thread(prepare)
        except BaseException:
            self.close(_CLOSE_TIMEOUT_S)
            raise

    @property
    def alive(self) -> bool:
        """Whether every batch thread is running and the batcher accepts items."""
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    @property
    def depth(self) -> int:
        """Items in the queue."""
        return len(self._queue)

    @property
    def unanswered(self) -> int:
        """Items in the queue and in running batches."""
        with self._changed:
            return len(self._queue) + sum(len(batch.entries) for batch in self._running)

    def oldest_age_seconds(self) -> float:
        """How long the oldest item has been in the queue; 0 if the queue is empty."""
        with self._changed:
            return perf_counter() - self._oldest() if self._queue else 0.0

    def running_seconds(self) -> float:
        """How long the oldest running batch has taken so far; 0 while none runs."""
        with self._changed:
            return self._running.running_seconds(perf_counter())

    def expected_seconds(self, items: int) -> float:
        """How long the device needs for `items` at the pace of recent batches; 0 before the first batch."""
        return self._running.expected_seconds(items)

    def submit(self, item: Item, *, future: Future[Completed[Result]] | None = None) -> Future[Completed[Result]]:
        """Queue one item. Cancelling its future removes the item from the queue.

        `future` is a future to answer with, of a subclass whose `set_running_or_notify_cancel` may report a
        cancellation that was made elsewhere. The batcher then cancels it, without holding its lock.

        Raises DrainingError once closed, the error of `abandon` after that; OverloadedError if `queue_capacity` items
        are queued.
        """
        if future is None:
            future = Future()
        key = self._fairness_key(item)
        with self._changed:
            if self._closed:
                raise self._refusal()
            if len(self._queue) >= self._queue_capacity:
                raise OverloadedError(self._queue_capacity, self.expected_seconds(len(self._queue)))
            self._queue.append(future, _Entry(item, future, perf_counter()), key)
            self._changed.notify_all()
        # The callback does not refer to the future: that would be a cycle. It runs at once if the future is cancelled.
        future.add_done_callback(self._remove_cancelled)
        return future

    def close(self, timeout_s: float) -> bool:
        """Accept nothing new, answer accepted items, end the threads. Returns False if that exceeds `timeout_s`."""
        until = perf_counter() + timeout_s
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, until - perf_counter()))
        return not any(thread.is_alive() for thread in self._threads)

    def abandon(self, error: Callable[[], Exception]) -> None:
        """Accept nothing new, and fail every queued and running item with its own error. The results of running
        forwards are dropped."""
        with self._changed:
            self._closed = True
            self._refusal = error
            running = self._running.clear()
            waiting = [self._queue.popleft() for _ in range(len(self._queue))]
            self._changed.notify_all()
        for batch in running:
            for entry in batch.entries:
                entry.future.set_exception(error())
        for entry in waiting:
            if entry.future.set_running_or_notify_cancel():
                entry.future.set_exception(error())
            else:
                entry.future.cancel()

    def _start_thread(self, prepare: Callable[[], None]) -> None:
        """Start a batch thread, and return once it is prepared. Raises what `prepare` raises."""
        prepared: Future[None] = Future()
        thread = threading.Thread(
            target=self._work, args=(prepare, prepared), name=f"batcher-{self._instance.model}", daemon=True
        )
        thread.start()
        self._threads.append(thread)
        prepared.result()

    def _work(self, prepare: Callable[[], None], prepared: Future[None]) -> None:
        try:
            prepare()
        except BaseException as error:  # noqa: BLE001 - raised by `_start_thread`
            prepared.set_exception(error)
            return
        prepared.set_result(None)
        # No local variable refers to a batch while this thread waits: an idle service keeps no image alive.
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        batch = self._next_batch()
        if batch is None:
            return False
        # Without the lock: the callbacks may do I/O.
        for future in batch.cancelled:
            future.cancel()
        if batch.entries:
            self._report(self._answer(batch))
        return True

    def _next_batch(self) -> _Batch[Item, Result] | None:
        """Wait for the next batch and return it; None once closed and empty. The batch has no entries if all of them
        were cancelled. Decides under the lock, and runs nothing."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._can_form())
            if not self._queue:
                return None
            trigger = self._delay_batch()
            entries: list[_Entry[Item, Result]] = []
            cancelled: list[Future[Completed[Result]]] = []
            while self._queue and len(entries) < self._max_batch_size:
                entry = self._queue.popleft()
                # False: the item was cancelled. True: it cannot be cancelled from here on.
                if entry.future.set_running_or_notify_cancel():
                    entries.append(entry)
                else:
                    cancelled.append(entry.future)
            self._dropped += len(cancelled)
            batch = _Batch(
                began_at=perf_counter(),
                allows_overlap=self._running.allows_overlap(len(entries)),
                entries=entries,
                trigger="full" if len(entries) == self._max_batch_size else trigger,
                dropped=self._dropped,
                cancelled=cancelled,
            )
            if entries:
                self._dropped = 0
                self._running.begin(batch)
            return batch

    def _can_form(self) -> bool:
        """Return whether this thread may form a batch now."""
        if self._forming or not self._queue:
            return False
        return self._running.may_start or len(self._queue) >= self._max_batch_size

    def _delay_batch(self) -> Trigger:
        """Wait until the batch is full or its oldest item has waited for `max_batch_delay_s`."""
        if self._max_wait_s:
            # Measured from the arrival of the oldest item: a busy device has already delayed it.
            remaining = self._oldest() + self._max_wait_s - perf_counter()
            self._forming = True
            self._changed.wait_for(
                lambda: self._closed or len(self._queue) >= self._max_batch_size, timeout=max(remaining, 0.0)
            )
            self._forming = False
            # The queue may hold more than one batch, and other threads have waited while this one formed its own.
            self._changed.notify_all()
        if self._closed:
            return "drain"
        return "wait" if self._max_wait_s else "idle"

    def _remove_cancelled(self, future: Future[Completed[Result]]) -> None:
        """Remove a cancelled item. No notification: no thread waits for a shorter queue."""
        if future.cancelled():
            with self._changed:
                self._dropped += self._queue.remove(future)

    def _oldest(self) -> float:
        return min(entry.enqueued_at for entry in self._queue.firsts())

    def _answer(self, batch: _Batch[Item, Result]) -> BatchReport:
        size = len(batch.entries)
        results: Sequence[Result | Exception]
        stopped = False
        try:
            results = self._run_batch([entry.item for entry in batch.entries])
            if len(results) != size:
                raise RuntimeError(f"{size} items went in, {len(results)} results came out")  # noqa: TRY301
        except AllCancelledError:
            stopped = True
            results = [AllCancelledError() for _ in batch.entries]
        except BaseException as error:  # noqa: BLE001 - any error: the items fail, the thread goes on
            results = self._failures(batch, error)
        with self._changed:
            ended_at = perf_counter()
            # After `abandon` its items have their errors already.
            unanswered = batch in self._running
            busy_seconds = self._running.end(batch, ended_at)
            if not stopped:
                self._running.learn_pace(busy_seconds, size)
            self._changed.notify_all()
        report = BatchReport(
            self._instance,
            size,
            batch.trigger,
            batch.began_at,
            forward_seconds=ended_at - batch.began_at,
            busy_seconds=busy_seconds,
            dropped=batch.dropped,
        )
        for entry, result in zip(batch.entries if unanswered else (), results, strict=False):
            if isinstance(result, Exception):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(Completed(result, batch.began_at - entry.enqueued_at, report))
        return report

    def _failures(self, batch: _Batch[Item, Result], error: BaseException) -> list[ForwardError]:
        _log.error("a batch of %d failed in %s", len(batch.entries), self._instance.model, exc_info=error)
        # One exception for each item: a shared one would collect a traceback from each request.
        return [ForwardError(self._instance.model, f"{type(error).__name__}: {error}") for _ in batch.entries]

    def _report(self, report: BatchReport) -> None:
        try:
            self._on_batch(report)
        except Exception:  # noqa: BLE001 - an error of the callback must not end the thread
            _log.exception("the callback for batches of %s failed", self._instance.model)
