"""One image between three threads: the event loop that waits for it, the decode pool, and the batcher."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextlib import suppress
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models.images.costs import FREE
from models.interface.request import AllCancelledError, CancelToken, Image, InferenceRequest
from models.interface.telemetry import Stage
from models.scheduling.batcher import Completed


class BatchItem(NamedTuple):
    """One image: (3, H, W) uint8 of the model's input size, and its request without the images."""

    image: torch.Tensor
    request: InferenceRequest


class ItemOutput(NamedTuple):
    """One image's result: features (D,) float32; the indices (top_k,) int64 and probabilities (top_k,) float32 of
    the likeliest classes, most probable first. The arrays are views into the batch's.

    `finite`: whether all the numbers are finite. A network can overflow, and JSON cannot represent inf or NaN.
    `all_probabilities`: (C,) float32, those of all classes by index, if the request asked for them.
    """

    features: NDArray[np.float32]
    indices: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    finite: bool
    all_probabilities: NDArray[np.float32] | None = None


class Queue(Protocol):
    """The queue of a model, in this process or another. models.scheduling.batcher.Batcher describes the methods."""

    def submit(self, item: BatchItem) -> Future[Completed[ItemOutput]]: ...

    def expected_seconds(self, items: int) -> float: ...


class LocalQueue(Queue, Protocol):
    """The queue of a model in this process."""

    def submit(
        self, item: BatchItem, *, future: Future[Completed[ItemOutput]] | None = None
    ) -> Future[Completed[ItemOutput]]: ...


class ImageJob:
    """The event loop waits for `done` and may cancel the job, the decode pool queues it, the batcher answers it.

    `request` is the job's request without the images. `outcome` is the result or the error. Errors are stored,
    not raised: a traceback would keep the request's images alive. `cost` is that of the decode, as predicted.
    """

    def __init__(self, image: Image, request: InferenceRequest, loop: asyncio.AbstractEventLoop) -> None:
        self._image = image
        self.request = request
        self.started_at = perf_counter()
        self.decode_seconds = 0.0
        self.cost = FREE
        self.done: asyncio.Future[None] = loop.create_future()
        self.outcome: Completed[ItemOutput] | BaseException | None = None
        self._loop = loop
        self._queued: Future[Completed[ItemOutput]] | None = None

    @property
    def cancel_token(self) -> CancelToken:
        return self.request.cancel_token

    def take_image(self) -> Image:
        """Return the image and release it: the queue does not need it."""
        image, self._image = self._image, b""
        return image

    def put_back(self, encoded: bytes) -> None:
        """Hold the file again, unless the job is cancelled: its bytes are no longer counted then."""
        self._image = encoded
        # Read after the file is stored; `cancel` drops the file after the token is cancelled.
        if self.request.cancel_token.cancelled:
            self._image = b""

    def queue(self, batcher: Queue, item: BatchItem) -> None:
        """Submit the decoded image to the batcher. Raises OverloadedError, DrainingError."""
        queued = self._queued = batcher.submit(item)
        queued.add_done_callback(self._on_batch_done)
        if self.request.cancel_token.cancelled:
            queued.cancel()
            self._queued = None

    def fail(self, error: Exception) -> None:
        """Answer with an error, from any thread."""
        # The error's traceback may refer to this job.
        self._image = b""
        self._finish_soon(error)

    def cancel(self) -> Stage:
        """Drop the image unless its forward has begun. Call after cancelling the token. Returns the stage it was in.

        The token is cancelled before this looks for the batcher's future; `queue` reads the token after it has stored
        the future. So at least one of the two threads cancels the future.
        """
        self.done.cancel()
        self._image = b""
        queued, self._queued = self._queued, None
        if queued is None:
            return "decode"
        queued.cancel()
        return "queue" if queued.cancelled() else "forward"

    def _on_batch_done(self, queued: Future[Completed[ItemOutput]]) -> None:
        # A forward stopped by AllCancelledError: the event loop is about to learn of the disconnect and cancels this.
        if not queued.cancelled() and not isinstance(queued.exception(), AllCancelledError):
            self._finish_soon(queued.exception() or queued.result())

    def _finish_soon(self, outcome: Completed[ItemOutput] | BaseException) -> None:
        # A closed event loop needs no answer.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._finish, outcome)

    def _finish(self, outcome: Completed[ItemOutput] | BaseException) -> None:
        # The future's callback refers to this job: a cycle would keep the answer until a garbage collection.
        self._queued = None
        # `done` is done already if the job was cancelled.
        if not self.done.done():
            self.outcome = outcome
            self.done.set_result(None)
