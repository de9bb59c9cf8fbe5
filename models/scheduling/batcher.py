"""Batch formation: between pipeline.py, whose callers wait for one item each, and engine.py, which runs batches.

Work-conserving: an idle device takes what waits at once, be it one item; what arrives while it is busy is the
next batch. Fair: callers with many items take turns with callers of one. Threads of its own own the consuming end, so
a busy event loop never delays a batch.

A lane is a thread that runs one batch at a time. With two, a batch that is full already is begun while the one before
it runs, since waiting would bring it no company: the device finds its work there when it has done the last, instead of
waiting until answers are given and inputs stacked. One that is not full waits for the device, as with one lane, unless
those under way leave it room: on a CPU whose cores each run images of their own, a core that is done need not wait for
the others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, NamedTuple, TypeVar

from models.interface.cancellation import AllCancelledError
from models.interface.errors import DrainingError, ForwardError, OverloadedError
from models.interface.telemetry import BatchReport, Trigger
from models.scheduling.batch_threads import BatchThreads
from models.scheduling.fair_queue import FairQueue
from models.scheduling.in_flight import InFlight, RunningBatch

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Completed(Generic[Result]):
    """One item's result, the seconds it waited, and the batch that it was in."""

    result: Result
    queue_seconds: float
    batch: BatchReport


class _Waiting(NamedTuple, Generic[Item, Result]):
    item: Item
    future: Future[Completed[Result]]
    enqueued_at: float


@dataclass(slots=True, eq=False)
class _Batch(RunningBatch, Generic[Item, Result]):
    entries: list[_Waiting[Item, Result]]
    trigger: Trigger
    dropped: int
    cancelled: list[Future[Completed[Result]]]


class Batcher(Generic[Item, Result]):
    """Turns single submissions into batches for `run_batch`, which gets 1 to `max_batch_size` items and returns as
    many results in the same order, an exception where one item failed alone; it raises AllCancelledError when it has
    stopped because nobody waits for any of them. Items come in order of arrival, but a caller with several takes turns.

    `max_wait_s` (0: none) is how long the oldest item of a batch may wait for company.
    `lanes`: so many batches may be in `run_batch` at the same time, each in a thread of its own.
    `room_from`: a batch of as many items, but not a full one, leaves the device room for others of any size; None: no
    batch does.
    `prepare` runs first, in each thread that will run batches, one after another; `wait_until_ready` raises what it
    raised. `on_batch` is told of each batch from those threads, after its callers have their answers.
    """

    def __init__(
        self,
        run_batch: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        *,
        name: str,
        max_batch_size: int = 32,
        max_wait_s: float = 0.0,
        queue_capacity: int = 256,
        lanes: int = 1,
        room_from: int | None = None,
        fairness_key: Callable[[Item], Hashable] | None = None,
        prepare: Callable[[], None] = lambda: None,
        on_batch: Callable[[BatchReport], None] = lambda _report: None,
    ) -> None:
        self._run_batch = run_batch
        self._name = name
        self._max_batch_size = max_batch_size
        self._max_wait_s = max_wait_s
        self._queue_capacity = queue_capacity
        self._fairness_key = fairness_key
        self._on_batch = on_batch
        self._queue: FairQueue[_Waiting[Item, Result]] = FairQueue()
        self._changed = threading.Condition()
        self._closed = False
        self._refusal: Callable[[], Exception] = DrainingError
        # One lane at a time picks the next batch, which may take it `max_wait_s`.
        self._forming = False
        # Items whose clients have disconnected since the last batch was formed.
        self._dropped = 0
        self._occupancy: InFlight[_Batch[Item, Result]] = InFlight(full_size=max_batch_size, room_from=room_from)
        self._lanes = BatchThreads(
            lanes,
            name=f"batcher-{name}",
            prepare=prepare,
            work=self._work,
            on_failure=lambda: self.abandon(DrainingError),
        )
        self._lanes.start()

    def wait_until_ready(self) -> None:
        """Return once `prepare` has; raises what it raised, after which the batcher is closed."""
        self._lanes.wait_until_prepared()

    @property
    def alive(self) -> bool:
        """Whether everyone is there who is to take what is submitted."""
        return self._lanes.alive and not self._closed

    @property
    def max_batch_size(self) -> int:
        return self._max_batch_size

    @property
    def depth(self) -> int:
        """Items waiting for a batch."""
        return len(self._queue)

    def oldest_age_seconds(self) -> float:
        """How long the item that came first has waited; 0 for an empty queue."""
        with self._changed:
            return perf_counter() - self._oldest() if self._queue else 0.0

    def running_seconds(self) -> float:
        """How long the forward under way has taken so far; 0 while there is none."""
        with self._changed:
            return self._occupancy.running_seconds(perf_counter())

    def expected_seconds(self, items: int) -> float:
        """How long the device needs for that many items, from the pace of recent batches; 0 before the first."""
        return self._occupancy.expected_seconds(items)

    def submit(self, item: Item, *, future: Future[Completed[Result]] | None = None) -> Future[Completed[Result]]:
        """Queue one item. Cancelling the future before its batch forms costs no forward, and frees the item's place at
        once. Items of one `caller` take turns with everybody else's; without one, an item is its own. `future`: one to
        answer by, of a kind that hears by itself of its batch, or says there that it is cancelled; then it is cancelled
        here, without any lock.

        Raises DrainingError once closed, after `abandon` its error; OverloadedError when `queue_capacity` items wait.
        """
        if future is None:
            future = Future()
        key = future if self._fairness_key is None else self._fairness_key(item)
        with self._changed:
            if self._closed:
                raise self._refusal()
            if len(self._queue) >= self._queue_capacity:
                raise OverloadedError(self._queue_capacity, self.expected_seconds(len(self._queue)))
            self._queue.append(future, _Waiting(item, future, perf_counter()), key)
            self._changed.notify_all()
        # It has no reference to the future: that would be a cycle. Called at once if the future is cancelled by now.
        future.add_done_callback(self._remove_cancelled)
        return future

    def close(self, timeout_s: float | None = None) -> bool:
        """Take nothing new, answer everything accepted, end the threads. False if that took over `timeout_s`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        return self._lanes.join(timeout_s)

    def abandon(self, error: Callable[[], Exception]) -> None:
        """Take nothing new, and give everybody who waits an error of his own, also for the forwards under way: what
        they give, should they ever end, is for nobody."""
        with self._changed:
            self._closed = True
            self._refusal = error
            running = self._occupancy.clear()
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

    def _work(self) -> None:
        # No local holds a batch while this thread waits: an idle service keeps no image alive.
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        batch = self._next_batch()
        if batch is None:
            return False
        # What hears of it may do I/O: not under the lock.
        for future in batch.cancelled:
            future.cancel()
        if batch.entries:
            self._report(self._answer(batch))
        return True

    def _next_batch(self) -> _Batch[Item, Result] | None:
        """The next batch, waited for, without entries where all who waited have left; None once closed and empty.
        Decides under the lock; runs nothing."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._wanted())
            if not self._queue:
                return None
            trigger = self._wait_for_company()
            entries: list[_Waiting[Item, Result]] = []
            cancelled: list[Future[Completed[Result]]] = []
            while self._queue and len(entries) < self._max_batch_size:
                entry = self._queue.popleft()
                # False: its client has disconnected. True: from here on it cannot be cancelled.
                if entry.future.set_running_or_notify_cancel():
                    entries.append(entry)
                else:
                    cancelled.append(entry.future)
            self._dropped += len(cancelled)
            batch = _Batch(
                began_at=perf_counter(),
                leaves_room=self._occupancy.would_leave_room(len(entries)),
                entries=entries,
                trigger="full" if len(entries) == self._max_batch_size else trigger,
                dropped=self._dropped,
                cancelled=cancelled,
            )
            if entries:
                self._dropped = 0
                self._occupancy.begin(batch)
            return batch

    def _wanted(self) -> bool:
        """Whether there is something for the lane that asks."""
        if self._forming or not self._queue:
            return False
        return self._occupancy.has_room or len(self._queue) >= self._max_batch_size

    def _wait_for_company(self) -> Trigger:
        if self._max_wait_s:
            # The wait counts from the first item's arrival: a busy device has already made it wait.
            remaining = self._oldest() + self._max_wait_s - perf_counter()
            self._forming = True
            self._changed.wait_for(
                lambda: self._closed or len(self._queue) >= self._max_batch_size, timeout=max(remaining, 0.0)
            )
            self._forming = False
            # More may wait than one batch takes: the other lanes have looked while this one was forming.
            self._changed.notify_all()
        if self._closed:
            return "drain"
        return "wait" if self._max_wait_s else "idle"

    def _remove_cancelled(self, future: Future[Completed[Result]]) -> None:
        """Free the place of an item whose client has left. No lane waits for the queue to become shorter."""
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
        except BaseException as error:  # noqa: BLE001 - whatever it was: every caller hears, the thread lives on
            results = self._failures(batch, error)
        with self._changed:
            ended_at = perf_counter()
            # Not where it was abandoned meanwhile: then everybody has an answer.
            expected = batch in self._occupancy
            busy_seconds = self._occupancy.end(batch, ended_at)
            if not stopped:
                self._occupancy.learn_pace(busy_seconds, size)
            self._changed.notify_all()
        report = BatchReport(
            self._name,
            size,
            batch.trigger,
            batch.began_at,
            forward_seconds=ended_at - batch.began_at,
            busy_seconds=busy_seconds,
            dropped=batch.dropped,
        )
        for entry, result in zip(batch.entries if expected else (), results, strict=False):
            if isinstance(result, Exception):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(Completed(result, batch.began_at - entry.enqueued_at, report))
        return report

    def _failures(self, batch: _Batch[Item, Result], error: BaseException) -> list[ForwardError]:
        _log.error("a batch of %d failed in %s", len(batch.entries), self._name, exc_info=error)
        # An exception of its own for each caller: a shared one would grow a traceback per caller.
        return [ForwardError(self._name, f"{type(error).__name__}: {error}") for _ in batch.entries]

    def _report(self, report: BatchReport) -> None:
        try:
            self._on_batch(report)
        except Exception:  # noqa: BLE001 - a listener's fault must not end the thread
            _log.exception("the listener to batches of %s failed", self._name)
