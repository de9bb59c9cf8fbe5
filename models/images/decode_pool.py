"""The decode pool: ordinary images are decoded in threads, expensive and unusual ones in processes. Threads also
copy ready pixels.

All models of a process share one pool. The cost of an image is predicted first (formats.py). There are half as many
processes as threads, so that expensive decodes leave the threads to cheap images. Processes share a memory budget
(decode_memory.py), and refuse images once the waiting ones would take too long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Protocol, cast

import torch

from models.hardware import cores
from models.images.costs import FREE, DecodeCost
from models.images.decode import DamagedJpegError, JpegReader, decode_strips, ignore_pillow_warnings
from models.images.decode_memory import DecodeMemory
from models.images.decoder_process import DecoderProcess
from models.images.formats import predict_cost
from models.images.preprocessing import Transform, pixels_needed, prepared
from models.interface.admission import Budget
from models.interface.errors import DecodersBusyError, DrainingError
from models.interface.request import NEVER_CANCELLED, CancelToken, Image, ImageLimits, ReadyPixels

# Largest image that a thread decodes, as shares of the limits: a fifth of the CPU time, and an equal share of a
# quarter of the memory. The lower bound is enough for a JPEG of 48 megapixels at a reduced size.
_THREAD_SECONDS = 1 / 5
_THREADS_BYTES = 1 / 4
_LEAST_THREAD_BYTES = 32 * 2**20
_MOST_THREAD_BYTES = 48 * 2**20
# Resident memory of an idle decoder process, in bytes.
_PROCESS_BYTES = 44_000_000


class DecodeJob(Protocol):
    """An image to be decoded. Its methods are called from any thread."""

    cost: DecodeCost
    """FREE until the pool has predicted it."""

    @property
    def cancel_token(self) -> CancelToken: ...

    def take_image(self) -> Image:
        """The file, or ready pixels, which the job then no longer holds."""

    def put_back(self, encoded: bytes) -> None:
        """Hold the file again, while it waits for a process. A job that is cancelled drops it."""


# How a job ended: (3, crop, crop) uint8, an error, or None if it was cancelled.
Decoded = torch.Tensor | Exception | None
# Called at the end of a job, in the thread that ran it. Must not raise.
Done = Callable[[Decoded], None]


class DecodePool:
    """`threads` threads, of one core each, and half as many decoder processes, at least one, which are started when
    they are first needed. `longest_wait_s`: predicted seconds of decoding that may wait for a process. `memory` is for
    decodes in processes; without it, they have limits.max_decode_bytes in this pool."""

    def __init__(
        self, threads: int, limits: ImageLimits, *, longest_wait_s: float = 30.0, memory: DecodeMemory | None = None
    ) -> None:
        ignore_pillow_warnings()
        self.threads = threads
        self.processes = max(1, threads // 2)
        self._limits = limits
        # Predicted seconds of the decodes that wait for a process or run in one. Guarded by the lock.
        self._expensive_s = Budget(
            longest_wait_s * self.processes, lambda used: DecodersBusyError(used / self.processes), overshoot=True
        )
        self._memory = memory or DecodeMemory(limits.max_decode_bytes)
        share = limits.max_decode_bytes * _THREADS_BYTES / threads
        self._thread_bytes = min(max(share, _LEAST_THREAD_BYTES), _MOST_THREAD_BYTES)
        self._executor = ThreadPoolExecutor(
            threads, thread_name_prefix="decode", initializer=cores.use_one_core_in_this_thread
        )
        # One thread for each process, which waits for its reply, and resizes the image.
        self._process_threads = ThreadPoolExecutor(
            self.processes, thread_name_prefix="decoder-process", initializer=self._start_process_thread
        )
        self._decoders: dict[int, DecoderProcess] = {}
        _start_all(self._executor, threads)
        _start_all(self._process_threads, self.processes)
        self._lock = threading.Lock()
        self._closed = False
        self._ending = threading.Thread(target=self._shut_down, name="decode-ending", daemon=True)
        # Start of the current decode, by thread.
        self._since: dict[int, float] = {}

    def decode(self, job: DecodeJob, transform: Transform, done: Done) -> None:
        """Queue a decode and resize, and call `done` at its end. Called from any thread. Raises DrainingError once
        closed."""
        _execute(self._executor, partial(self._decode, job, transform, done))

    def submit(self, encoded: bytes, transform: Transform) -> Future[torch.Tensor]:
        """Queue a decode and resize, and return its future, which raises ImageError and DecodersBusyError. The lens
        uses it; requests use `decode`."""
        future: Future[torch.Tensor] = Future()

        def done(outcome: Decoded) -> None:
            if isinstance(outcome, torch.Tensor):
                future.set_result(outcome)
            else:
                future.set_exception(outcome or DrainingError())

        future.set_running_or_notify_cancel()
        self.decode(_Awaited(encoded), transform, done)
        return future

    def stuck(self, longest_s: float) -> str | None:
        """Return why a thread is stuck, if a decode in one has taken longer than that; else None. Decodes in processes
        have a time limit."""
        seconds = perf_counter() - min(self._since.copy().values(), default=perf_counter())
        return None if seconds <= longest_s else f"an image has been decoded for {seconds:.0f} s"

    def close(self, timeout_s: float) -> bool:
        """Accept no new job, and end threads and processes once all jobs are done. False if they had not ended after
        `timeout_s`."""
        with self._lock:
            first, self._closed = not self._closed, True
        if first:
            # In a thread, because the executors wait without a timeout for a decode that hangs.
            self._ending.start()
        self._ending.join(timeout_s)
        return not self._ending.is_alive()

    def _shut_down(self) -> None:
        # First the threads, because they hand over to the processes.
        self._executor.shutdown()
        self._process_threads.shutdown()
        for decoder in self._decoders.values():
            decoder.close()
        self._memory.close()

    def _decode(self, job: DecodeJob, transform: Transform, done: Done) -> None:
        thread = threading.get_ident()
        self._since[thread] = perf_counter()
        outcome: Decoded = None
        try:
            if not job.cancel_token.cancelled:
                outcome = self._decode_here(job, transform, done)
                if outcome is None:
                    return
        except Exception as error:  # noqa: BLE001 - any error is the outcome of the job; the pool goes on
            outcome = error
        finally:
            del self._since[thread]
        done(outcome)
        # Break the reference cycle of an error and this frame, which would keep the image.
        del outcome

    def _decode_here(self, job: DecodeJob, transform: Transform, done: Done) -> torch.Tensor | None:
        """Decode the image in this thread, or hand it over to a process and return None."""
        encoded, enough = job.take_image(), pixels_needed(transform)
        if isinstance(encoded, ReadyPixels):
            return prepared(encoded, transform)
        job.cost = predict_cost(encoded, self._limits, enough=enough)
        reader: JpegReader = "either"
        if self._may_have_a_thread(job.cost):
            try:
                return transform.shape_strips(decode_strips(encoded, self._limits, enough=enough, jpeg_reader="fast"))
            except DamagedJpegError:
                reader = "tolerant"
        job.put_back(encoded)
        self._hand_over(job.cost, partial(self._decode_in_process, job, reader, transform), done)
        return None

    def _may_have_a_thread(self, predicted: DecodeCost) -> bool:
        return (
            predicted.ordinary
            and predicted.seconds <= _THREAD_SECONDS * self._limits.max_decode_seconds
            and predicted.thread_bytes <= self._thread_bytes
        )

    def _hand_over(self, cost: DecodeCost, decode: Callable[[], torch.Tensor | None], done: Done) -> None:
        """Queue an image for a process. Raises DecodersBusyError, DrainingError."""
        with self._lock:
            self._expensive_s.acquire(cost.seconds)
        try:
            _execute(self._process_threads, partial(self._run_in_process, cost, decode, done))
        except BaseException:
            self._no_longer_waits(cost)
            raise

    def _run_in_process(self, cost: DecodeCost, decode: Callable[[], torch.Tensor | None], done: Done) -> None:
        outcome: Decoded
        try:
            outcome = decode()
        except Exception as error:  # noqa: BLE001 - as above
            outcome = error
        self._no_longer_waits(cost)
        done(outcome)
        del outcome  # as above

    def _decode_in_process(self, job: DecodeJob, reader: JpegReader, transform: Transform) -> torch.Tensor | None:
        """Return the image, (3, crop, crop) uint8, or None if it was cancelled while it waited."""
        decoder, enough = self._decoders[threading.get_ident()], pixels_needed(transform)
        encoded = cast(bytes, job.take_image())
        if job.cancel_token.cancelled:
            return None
        # The process has a copy of the file, and so has Pillow's reader.
        needed = _PROCESS_BYTES + 2 * len(encoded) + job.cost.memory_bytes
        with self._memory.reserved(needed, job.cancel_token) as has_memory:
            if not has_memory:
                return None
            return decoder.decode(encoded, job.cost, transform.shape_strips, enough=enough, jpeg_reader=reader)

    def _no_longer_waits(self, predicted: DecodeCost) -> None:
        with self._lock:
            self._expensive_s.release(predicted.seconds)

    def _start_process_thread(self) -> None:
        cores.use_one_core_in_this_thread()
        self._decoders[threading.get_ident()] = DecoderProcess(self._limits)


def _start_all(executor: ThreadPoolExecutor, threads: int) -> None:
    """Start all threads of an executor, because one that cannot be started later would fail an image."""
    all_busy = threading.Event()
    try:
        for _ in range(threads):
            executor.submit(all_busy.wait)
    finally:
        all_busy.set()


def _execute(executor: ThreadPoolExecutor, work: Callable[[], None]) -> None:
    """Raises DrainingError once the executor is shut down."""
    try:
        executor.submit(work)
    except RuntimeError:
        raise DrainingError from None


class _Awaited:
    """A DecodeJob that is never cancelled."""

    cancel_token = NEVER_CANCELLED

    def __init__(self, encoded: bytes) -> None:
        self.cost = FREE
        self._encoded = encoded

    def take_image(self) -> bytes:
        return self._encoded

    def put_back(self, encoded: bytes) -> None:
        pass
